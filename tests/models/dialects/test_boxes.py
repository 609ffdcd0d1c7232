"""What is written is read again, in every format, whatever the boxes, the size and the words around them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimed.models.dialects import boxes as formats

FORMATS = {name: value for name, value in vars(formats).items() if isinstance(value, formats.BoxFormat)}
SIDE = st.floats(0, 1, allow_nan=False, width=32)
BOX = st.tuples(SIDE, SIDE, SIDE, SIDE)
PHRASE = st.text(st.sampled_from("liver of tumor, 'x' 12 é-"), max_size=12).map(lambda text: " ".join(text.split()))


def whole(box, step):
    (x1, x2), (y1, y2) = sorted(box[::2]), sorted(box[1::2])
    return (x1, y1, x2, y2) if x2 - x1 > 2 * step and y2 - y1 > 2 * step else None


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    found=st.lists(BOX, min_size=1, max_size=4),
    phrase=PHRASE,
    height=st.integers(300, 3000),
    width=st.integers(300, 3000),
)
def test_written_and_read_again(name, found, phrase, height, width):
    form = FORMATS[name]
    size = (height, width)
    step = 1.01 / min(form.units(size))
    found = [box for box in (whole(box, step) for box in found) if box is not None]
    if not found:
        return
    read = form.read(f"There is a {form.write(phrase, found, size)}. That is all 12.", size)
    back = [box for _, _, group in read for box in group]
    assert len(back) == len(found)
    for box, other in zip(found, back, strict=True):
        assert max(abs(a - b) for a, b in zip(box, other, strict=True)) <= step
    if form.names_phrase and name != "PALIGEMMA":  # nothing closes a phrase there but the next box or the end
        assert {words for _, words, _ in read} == {phrase}
    assert form.read("plain words [1, 2] and {3}", size) == []


def test_the_strings_are_the_published_ones():
    size, box = (200, 400), [(0.1, 0.2, 0.5, 0.6)]
    assert formats.PERCENT.write("liver", box, size) == "liver {<10><20><50><60>}"
    assert formats.INTERNVL.write("liver", box, size) == "<ref>liver</ref><box>[[100, 200, 500, 600]]</box>"
    assert formats.QWEN2.write("liver", box, size) == (
        "<|object_ref_start|>liver<|object_ref_end|><|box_start|>(100,200),(500,600)<|box_end|>"
    )
    assert formats.QWEN_PIXELS.write("liver", box, size) == '[{"bbox_2d": [40, 40, 200, 120], "label": "liver"}]'
    assert formats.QWEN_JSON.write("liver", box, size) == '[{"bbox_2d": [100, 200, 500, 600], "label": "liver"}]'
    assert formats.PALIGEMMA.write("liver", box, size) == "<loc0205><loc0102><loc0614><loc0512> liver"


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_answers_have_no_box_and_no_error(name):
    form = FORMATS[name]
    text = form.write("liver", [(0.1, 0.2, 0.5, 0.6)], (300, 300))
    for end in range(len(text)):
        form.read(text[:end], (300, 300))
        form.read(text[end:], (300, 300))
    assert form.read("", (300, 300)) == []
    swapped = form.write("", [(0.5, 0.6, 0.1, 0.2)], (1000, 1000))
    ((_, _, (box,)),) = form.read(swapped, (1000, 1000))
    assert box == pytest.approx((0.1, 0.2, 0.5, 0.6), abs=0.011)
