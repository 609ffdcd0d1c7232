"""Assignment of regions over name and place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimed.evaluation.matching import charged_to, match_phrases, match_regions, matched_dice, name_likeness
from unimed.metrics.matching import assign
from unimed.structures import Region


def square(name, x, y=0, size=4):
    mask = np.zeros((12, 24), bool)
    mask[y : y + size, x : x + size] = True
    return Region(name, mask=mask, box_xyxy_px=(x, y, x + size, y + size))


def test_names_come_first_and_the_place_decides_among_equals():
    true = [square("mass", 0), square("mass", 10), square("liver", 16)]
    pairs = match_regions(true, [square("Liver.", 0), square("the mass", 11), square("mass", 1)])
    assert [(p.predicted.phrase, round(p.place, 2)) for p in pairs] == [
        ("mass", 0.75),
        ("the mass", 0.75),
        ("Liver.", 0),
    ]
    assert [p.predicted for p in match_regions(true, [])] == [None] * 3
    left = match_regions([], [square("mass", 0)])
    assert left[0].true is None and left[0].predicted.phrase == "mass"


@pytest.mark.parametrize(
    "predicted, true, question, likeness",
    [
        ("The Liver", "liver", "", 1), ("left kidney", "right kidney", "", 0), ("HER2+ cells", "HER2- cells", "", 0),
        ("large mass", "mass", "", 2 / 3), ("spleen", "liver", "Segment the liver.", 0), ("it", "liver", "", 0.1),
        ("what is bright", "nuclei", "Segment what is bright.", 0.1), ("", "nuclei", "", 0.1),
        ("nuclei in the image", "nuclei", "Segment the nuclei in the image", 0.4),
        ("liver", "spleen", "Segment the liver and the spleen.", 0),
    ],
)  # fmt: skip
def test_likeness_of_names(predicted, true, question, likeness):
    assert name_likeness(predicted, true, question) == pytest.approx(likeness, abs=0.01)


def test_a_phrase_may_have_several_boxes():
    true = [square("mass", 0), square("mass", 10), Region("effusion", presence=0.0)]
    phrases, left = match_phrases(true, [square("mass", 1), square("masses", 3), square("mass", 10), square("cyst", 0)])
    assert [(name, len(t), len(f)) for name, t, f in phrases] == [("mass", 2, 2), ("effusion", 1, 0)]
    assert [region.phrase for region in left] == ["masses", "cyst"]
    assert charged_to(left[1], true) == "mass" and charged_to(left[1], []) == "cyst"


def test_nameless_masks():
    one, other = square("", 0).mask, square("", 10).mask
    assert matched_dice([other, one], [one, other]) == 1 and matched_dice([], []) == 1
    assert matched_dice([one, one], [one]) == 0.5 == matched_dice([one], [one, other])
    assert matched_dice([np.zeros_like(one)], []) == 1 and matched_dice([one], [np.zeros_like(one)]) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_an_assignment_is_optimal_and_does_not_care_about_order(rows, columns, random):
    from itertools import permutations

    table = np.array([[round(random.random(), 3) for _ in range(columns)] for _ in range(rows)]).reshape(rows, columns)
    total = sum(value for _, _, value in assign(table, most_pairs=False))
    wide = table if rows <= columns else table.T
    best = max((sum(wide[i, p[i]] for i in range(len(wide))) for p in permutations(range(wide.shape[1]), len(wide))),
               default=0)  # fmt: skip
    assert total == pytest.approx(best)
    order = list(range(rows))
    random.shuffle(order)
    turned = {(order[i], j) for i, j, _ in assign(table[order], at_least=0.2)}
    assert turned == {(i, j) for i, j, _ in assign(table, at_least=0.2)} or len(np.unique(table)) < table.size


def test_a_second_matrix_decides_only_among_equals():
    names, places = np.array([[1.0, 1.0], [1.0, 0.5]]), np.array([[0.9, 0.0], [0.0, 0.9]])
    assert [pair[:2] for pair in assign(names, places)] == [(0, 1), (1, 0)]
    assert [pair[:2] for pair in assign(np.ones((2, 2)), places)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="of one shape"):
        assign(names, places[:1])
    with pytest.raises(ValueError, match="NaN"):
        assign(names * np.nan + 1, places)
