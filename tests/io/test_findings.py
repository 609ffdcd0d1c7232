import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimed.geometry import Geometry
from unimed.io.codes import code_phrase
from unimed.io.findings import color_of, findings_of, presence_words, sentences, stable_uid
from unimed.io.result import Prediction
from unimed.structures import Region


def findings(*phrases, text="", **options):
    return findings_of(
        Prediction(text, tuple(map(Region, phrases)), Geometry.pixels(), model_reference="/a/m"), **options
    )


def test_sentences_keep_numbers_whole_and_cover_the_text():
    text = "A cyst of 1.2 cm. Is it new?  Yes! 肝臓は正常です。次。\nLast line"
    found = [text[start:end].strip() for start, end in sentences(text)]
    assert found == ["A cyst of 1.2 cm.", "Is it new?", "Yes!", "肝臓は正常です。", "次。", "Last line"]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80))
def test_sentences_are_in_order_and_lose_no_letter(text):
    places = sentences(text)
    assert all(a < b for a, b in places) and all(x[1] <= y[0] for x, y in zip(places, places[1:], strict=False))
    rest = "".join(text[start:end] for start, end in places)
    assert "".join(rest.split()) == "".join(text.split())


def test_each_region_gets_the_sentence_that_speaks_of_it():
    text = "The liver is large. A cyst is seen. Another cyst is small."
    regions = (Region("Liver"), Region("cyst", phrase_span=(44, 48)), Region("spleen"))
    found = findings_of(Prediction(text, regions))
    assert [f.sentence for f in found] == ["The liver is large.", "Another cyst is small.", ""]


def test_names_and_uids_tell_objects_apart_and_repeat():
    first, again = findings("nodule", "nodule", "\x07"), findings("nodule", "nodule", "\x07")
    assert [f.tracking_id for f in first] == ["nodule", "nodule 2", "segment 3"]
    assert [f.tracking_uid for f in first] == [f.tracking_uid for f in again]
    assert len({f.tracking_uid for f in first}) == 3
    assert findings("nodule", source_uid="1")[0].tracking_uid != findings("nodule", source_uid="2")[0].tracking_uid
    assert first[2].coding.source == "private" and first[2].label == "segment 3"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=4))
def test_uids_are_valid_whatever_they_are_made_of(parts):
    uid = stable_uid(*parts)
    assert uid == stable_uid(*parts) and len(uid) <= 64 and uid.startswith("2.25.") and uid[5:].isdigit()


def test_colors_belong_to_codes_and_differ_within_a_result():
    assert color_of(code_phrase("left kidney")) == color_of(code_phrase("kidney, left"))
    assert color_of(code_phrase("left kidney")) != color_of(code_phrase("right kidney"))
    names = ("optic disc", "hemorrhage", "macula", "liver", "spleen", "left kidney", "right kidney", "cyst", "aorta")
    colors = np.array([f.color for f in findings(*names)])
    assert colors.min() >= 0 and colors.max() <= 255
    for n, color in enumerate(colors):
        assert (np.abs(colors[:n] - color).sum(-1) >= 60).all(), names[n]


@pytest.mark.parametrize(
    ("region", "drawn", "words"),
    [
        (Region("x"), False, "looked for, not outlined; presence not stated"),
        (Region("x", presence=0.25), False, "looked for, not outlined; presence 0.25 (not calibrated)"),
        (Region("x", presence=0.75), True, "outlined; presence 0.75 (not calibrated)"),
        (Region("x", box_xyxy_px=(0, 0, 1, 1), presence=0.75), False, "marked by a box; presence 0.75 (not "
                                                                        "calibrated)"),
        (Region("x", presence=0.75), False, "looked for, not outlined; presence 0.75 (not calibrated); presence and "
                                            "outline contradict each other"),
    ],
)  # fmt: skip
def test_presence_in_words(region, drawn, words):
    assert presence_words(region, drawn) == words
