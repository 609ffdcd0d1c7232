"""Overlap, surfaces and instances: properties, named policies, and the recorded numbers of BiomedParse."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unimed.metrics.instances import components, instance_scores, label_iou, match_instances, pool_instances
from unimed.metrics.masks import MaskScores, dice, iou

GOLDEN = Path(__file__).parent.parent / "golden" / "metrics"
masks = arrays(bool, (4, 5))


@given(masks, masks)
def test_dice_and_iou_agree_with_each_other(prediction, truth):
    overlap, area = iou(prediction, truth, empty="perfect"), dice(prediction, truth, empty="perfect")
    assert 0 <= overlap <= area <= 1
    assert area == pytest.approx(2 * overlap / (1 + overlap))
    assert dice(truth, prediction, empty="perfect") == area


def test_empty_policies_are_named_and_one_empty_mask_is_always_zero():
    nothing, something = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    assert np.isnan(dice(nothing, nothing)) and dice(nothing, nothing, empty="perfect") == 1
    assert dice(nothing, nothing, empty="zero") == 0
    for policy in ("ignore", "perfect", "zero"):
        assert dice(something, nothing, empty=policy) == iou(nothing, something, empty=policy) == 0
    with pytest.raises(ValueError, match="ignore.*perfect.*zero"):
        dice(nothing, nothing, empty="one")
    with pytest.raises(ValueError, match="bool"):
        dice(nothing.astype(float), something)
    with pytest.raises(ValueError, match="same shape"):
        iou(nothing, np.zeros((2, 3), bool))


def test_aggregations_differ_when_targets_have_different_numbers_of_cases():
    full, empty = np.ones((2, 2), bool), np.zeros((2, 2), bool)
    scores = MaskScores()
    for _ in range(3):
        scores.add("nucleus", full, full)
    scores.add("tumour", empty, full, case_id="b")
    scores.add("tumour", empty, empty, case_id="c")
    scores.add("tumour", full, empty, case_id="d")
    summary, table = scores.summary(), scores.per_target()
    assert summary["dice_mean_over_targets"] == 0.5 and summary["dice_mean_over_cases"] == pytest.approx(3 / 5)
    assert summary["both_empty"] == 1 and summary["cases"] == 5
    assert table["tumour"]["missed"] == table["tumour"]["predicted_on_absent"] == 1
    assert MaskScores("perfect", scores.rows).summary()["cases"] == 6


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "biomedparse_metrics3d.json").read_text()), np.load(
        GOLDEN / "biomedparse_metrics3d.npz", allow_pickle=False
    )


@pytest.mark.slow  # imports MONAI
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_surfaces_equal_the_recorded_ones(golden):
    pytest.importorskip("monai")
    from unimed.metrics.surfaces import hausdorff, mean_surface_distances, nsd

    numbers, volumes = golden
    for name, expected in numbers["per_class"].items():
        prediction, truth = volumes["sem.seg"] == int(name), volumes["sem.gt"] == int(name)
        assert dice(prediction, truth) == pytest.approx(expected["dsc"], abs=1e-12)
        values = nsd(prediction, truth, numbers["spacing"], [0.5, 1, 2])
        assert values == pytest.approx([expected[f"nsd_tol{t}"] for t in ("0_5", "1", "2")], abs=1e-6)
        assert hausdorff(prediction, truth, numbers["spacing"]) == pytest.approx(expected["hd95"], abs=1e-6)
        assert hausdorff(prediction, truth, numbers["spacing"], 100) == pytest.approx(expected["hd100"], abs=1e-6)
        if expected["assd"]:
            distances = mean_surface_distances(prediction, truth, numbers["spacing"])
            assert distances == pytest.approx(expected["assd"], abs=1e-6)
    shifted = np.zeros((6, 6, 6), bool)
    shifted[1:4, 1:4, 1:4] = True
    assert nsd(shifted, shifted, (1, 1, 1)) == 1
    assert nsd(np.roll(shifted, 2, 0), shifted, (1.1, 1, 1), 2.2) == 1, "a tolerance holds at its own value"
    with pytest.raises(ValueError, match="spacing_mm needs 3"):
        nsd(shifted, shifted, (1, 1))


def test_instances_equal_the_recorded_ones(golden):
    numbers, volumes = golden
    truth = components(volumes["inst.gt"])
    for prediction in (volumes["inst.seg_binary"], volumes["inst.seg_labelled"]):
        parts = components(prediction)
        # Recorded with the truth along the rows and the background first.
        assert label_iou(parts, truth).T == pytest.approx(volumes["inst.iou_matrix"][1:, 1:], abs=1e-12)
        scores = instance_scores(parts, truth, (0.3, 0.5, 0.75))
        for threshold in ("0.3", "0.5", "0.75"):
            tp, fp, fn, _ = numbers[f"instance_tp_fp_fn_{threshold}"]
            name = str(round(float(threshold) * 100))
            assert [scores[f"{k}_{name}"] for k in ("tp", "fp", "fn")] == [tp, fp, fn]
        assert scores["f1_50"] == numbers["instance_binary_pred"]["F1"]
        assert round(scores["dice_matched_50"], 4) == numbers["instance_binary_pred"]["DSC_TP"]
    nothing = instance_scores(np.zeros_like(truth), truth)
    assert nothing["f1_50"] == 0 and nothing["fn_50"] == truth.max()


@settings(max_examples=30)
@given(arrays(np.uint8, (5, 6), elements=st.integers(0, 3)), st.permutations([1, 2, 3]))
def test_instance_scores_do_not_care_about_label_numbers(truth, order):
    renamed = np.array([0, *order])[truth]
    scores = instance_scores(renamed, truth)
    n = len(set(np.unique(truth)) - {0})
    assert scores["tp_50"] == scores["tp_75"] == n
    assert np.isnan(scores["ap_50"]) if n == 0 else scores["ap_50"] == 1


def test_matching_prefers_more_pairs_and_pools_counts():
    overlap = np.array([[0.6, 0.55], [0.7, 0.1]])
    assert {(i, j) for i, j, _ in match_instances(overlap)} == {(0, 1), (1, 0)}
    rows = [{"tp_50": 1, "fp_50": 1, "fn_50": 0}, {"tp_50": 0, "fp_50": 0, "fn_50": 2}]
    assert pool_instances(rows, (0.5,))["f1_50_micro"] == pytest.approx(2 / 5)
    with pytest.raises(ValueError, match="integer label maps"):
        label_iou(np.zeros((2, 2)), np.zeros((2, 2), int))


def test_surfaces_of_empty_and_of_one_voxel_masks_say_nothing(recwarn):
    pytest.importorskip("monai")
    from unimed.metrics.surfaces import hausdorff, mean_surface_distances, nsd

    for axes in (2, 3):
        empty, one, next_to_it = (np.zeros((6,) * axes, bool) for _ in range(3))
        one[(2,) * axes], next_to_it[(2,) * (axes - 1) + (3,)] = True, True
        spacing = (2.0,) * axes
        assert np.isnan(hausdorff(empty, empty, spacing)) and hausdorff(one, empty, spacing) == np.inf
        assert hausdorff(one, one, spacing) == 0 and 0 < hausdorff(one, next_to_it, spacing) <= 2
        assert nsd(one, one, spacing, 0.0) == 1 and nsd(one, empty, spacing) == 0
        assert mean_surface_distances(one, one, spacing) == (0, 0)
    assert not recwarn.list
