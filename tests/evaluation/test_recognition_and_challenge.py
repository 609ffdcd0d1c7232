"""K-S presence test, overlapping masks, challenge scoring: recorded numbers of BiomedParse and our corrections."""

import json
from pathlib import Path

import numpy as np
import pytest

from unimed.evaluation.published.cvpr25 import score_instances, score_semantic
from unimed.metrics.recognition import combine_masks, mask_statistics, presence_p_value, suppress_covered

GOLDEN = Path(__file__).parent.parent / "golden" / "metrics"
RECORDED = json.loads((GOLDEN / "biomedparse_recognition.json").read_text())
ARRAYS = np.load(GOLDEN / "biomedparse_recognition.npz", allow_pickle=False)
METRICS = json.loads((GOLDEN / "biomedparse_metrics3d.json").read_text())
VOLUMES = np.load(GOLDEN / "biomedparse_metrics3d.npz", allow_pickle=False)
NAMES = ("big", "overlapping", "small", "other", "weak")
MAPS = {name: ARRAYS[f"prob.{name}"] for name in NAMES}


def test_statistics_and_p_values_equal_the_recorded_ones():
    for name in NAMES:
        statistics = mask_statistics(MAPS[name], ARRAYS["image"])
        assert statistics == pytest.approx(RECORDED["mask_stats"][name], abs=1e-12)
    for key, row in RECORDED["p_values"].items():
        assert presence_p_value(row["stats"], row["params"], compat="reference") == pytest.approx(
            row["p_adjusted"], abs=1e-9
        ), key
    for key, row in RECORDED["all_targets"].items():
        for vector in "ab":
            p = presence_p_value(row[f"stats_{vector}"], row["params"], compat="reference")
            assert p == pytest.approx(row[f"p_adjusted_{vector}"], abs=1e-9), key
            # The better tail differs only where the published one has lost its digits.
            assert presence_p_value(row[f"stats_{vector}"], row["params"]) == pytest.approx(p, abs=5e-5)


def test_a_mask_just_below_half_is_no_longer_nan():
    image, faint = np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 127.5 / 255)
    assert mask_statistics(faint, image) == (0, 0, 0, 0)
    assert np.isnan(mask_statistics(faint, image, compat="reference")).all()
    with pytest.raises(ValueError, match="HxWx3"):
        mask_statistics(faint, image[..., 0])


def test_combined_masks_equal_the_recorded_ones():
    combined = combine_masks(MAPS)
    assert list(combined) == RECORDED["combine_masks_kept"]
    for name, mask in combined.items():
        assert (mask == (ARRAYS[f"combined.{name}"] > 0)).all()
    kept = suppress_covered(MAPS, RECORDED["nms_p_values"])
    assert kept == RECORDED["nms_kept_in_order"]
    both = combine_masks({name: MAPS[name] for name in kept})
    assert list(both) == RECORDED["nms_then_combine_kept"]
    for name, mask in both.items():
        assert (mask == (ARRAYS[f"nms_combined.{name}"] > 0)).all()
    assert combine_masks({}) == {}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_semantic_scores_equal_the_published_ones_and_false_labels_cost():
    predicted, truth = VOLUMES["sem.seg"], VOLUMES["sem.gt"]
    reference = score_semantic(predicted, truth, range(1, 10), compat="reference")
    assert round(reference["DSC"], 4) == METRICS["semantic"]["DSC"] and reference["false_labels"] == [5]
    ours = score_semantic(predicted, truth, range(1, 10))
    assert ours["DSC"] == pytest.approx(reference["DSC"] * 3 / 4), "one painted label is not there"
    subset = score_semantic(predicted, truth, [1, 3])
    assert round(subset["DSC"], 4) == METRICS["semantic_subset_ids"]["DSC"]
    filled = np.where(truth == 0, 1, truth)
    assert 1 not in [r["label"] for r in score_semantic(filled, filled, [1, 3, 7], compat="reference")["labels"]]
    assert (
        score_semantic(filled, filled, [1, 3, 7])["DSC"] == 1
        and len(score_semantic(filled, filled, [1, 3])["labels"]) == 2
    )
    assert np.isnan(score_semantic(np.zeros_like(truth), truth, [9])["DSC"])
    pytest.importorskip("monai")
    scored = score_semantic(predicted, truth, [1, 3, 7], spacing_mm=METRICS["spacing"])
    assert scored["NSD"] == pytest.approx(METRICS["nsd_tol2"], abs=1e-6)


def test_instance_scores_equal_the_published_ones():
    for key in ("inst.seg_binary", "inst.seg_labelled"):
        scores = score_instances(VOLUMES[key], VOLUMES["inst.gt"], compat="reference")
        assert scores["F1"] == METRICS["instance_binary_pred"]["F1"]
        assert round(scores["DSC_TP"], 4) == METRICS["instance_binary_pred"]["DSC_TP"]
    assert score_instances(np.zeros_like(VOLUMES["inst.gt"]), VOLUMES["inst.gt"])["F1"] == 0


def test_touching_instances_stay_apart_unless_the_reference_is_asked_for():
    truth = np.zeros((1, 4, 8), np.uint8)
    truth[:, :, :4], truth[:, :, 4:] = 1, 2
    assert score_instances(truth, truth)["F1"] == 1
    assert score_instances(truth, truth, compat="reference")["tp"] == 1, "merged into one, found at most once"
