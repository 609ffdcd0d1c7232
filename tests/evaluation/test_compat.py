"""Published metrics equal the numbers recorded from the published programs, quirks included."""

import json
from pathlib import Path

import numpy as np
import pytest

from unimed.evaluation.published import umedground, uni_med, unibiomed
from unimed.evaluation.robustness import reference_noise
from unimed.metrics import text
from unimed.metrics.boxes import accuracy_at, paired_iou

GOLDEN = Path(__file__).parent.parent / "golden" / "metrics"
UNI_MED = json.loads((GOLDEN / "uni_med.json").read_text())
UNIBIOMED = json.loads((GOLDEN / "unibiomed.json").read_text())
PHRASES = json.loads((GOLDEN / "umedground_text.json").read_text())
BOXES = np.load(GOLDEN / "umedground_boxes.npz", allow_pickle=False)


def largest_difference(ours, recorded):
    if isinstance(recorded, dict):
        assert set(recorded) <= set(ours)
        return max(largest_difference(ours[key], recorded[key]) for key in recorded)
    return abs(ours - recorded)


@pytest.mark.parametrize("row", UNI_MED["normalize_word"], ids=lambda row: row["input"][:20])
def test_uni_med_normal_form(row):
    assert uni_med.normalize(row["input"]) == row["output"]


def test_uni_med_pairs():
    for row in UNI_MED["text_pairs"]:
        assert uni_med.token_f1(row["pred"], row["gt"]) == pytest.approx(row["f1"], abs=1e-12)
        for n in range(1, 5):
            assert uni_med.sentence_bleu(row["pred"], row["gt"], n) == pytest.approx(row[f"bleu{n}"], rel=1e-9, abs=0)


def test_uni_med_reports():
    rows = UNI_MED["aggregate_vqa"]["data"]
    assert largest_difference(uni_med.vqa(rows), UNI_MED["aggregate_vqa"]["result"]) < 1e-12
    assert largest_difference(uni_med.identify(rows), UNI_MED["aggregate_identify"]) < 1e-12
    recorded = UNI_MED["caption"]
    assert largest_difference(uni_med.captions(recorded["data"]), recorded["evaluate_all"]) < 1e-9
    kept = [row for row in recorded["data"] if row["answer_pred"] and row["answer_gt"]]
    assert [" ".join(text.tokens(row["answer_gt"])) for row in kept] == [v[0] for v in recorded["ptb_gt"].values()]


def test_uni_med_boxes():
    for row in UNI_MED["iou"]:
        assert uni_med.box_iou(row["box1"], row["box2"]) == pytest.approx(row["iou"], abs=1e-12)
    for row in UNI_MED["box_parse"]:
        assert uni_med.parse_box(row["answer"]) == row["ints"]
    rows = [
        {"answer": "{<0><0><50><50>}", "gt_bbox": (0, 0, 100, 100), "width": 200, "height": 200},
        {"answer": "see {<0><0><50><50>}", "gt_bbox": (0, 0, 100, 100), "width": 200, "height": 200},
    ]
    assert uni_med.referring(rows) == {"miou": 0.5, "acc": 0.5}


def test_ours_mends_the_quirks_of_uni_med():
    assert uni_med.token_f1("heart heart heart", "heart") == 1 > text.token_f1("heart heart heart", "heart")
    assert not text.exact_match("normal", "no")
    assert paired_iou([0, 0, 10, 10], [10, 10, 20, 20])[0] == 0 < uni_med.box_iou((0, 0, 10, 10), (10, 10, 20, 20))


def test_umedground_boxes():
    predicted, truth = BOXES["pred_cxcywh"], BOXES["gt_cxcywh"]
    for size, name in ((640, "imgsize"), (1, "unit")):
        recorded = BOXES[f"per_sample_{name}_iou_acc50_acc30_acc10"]
        ious = umedground.sample_ious(predicted, truth, size)
        assert ious == pytest.approx(recorded[:, 0], abs=1e-6)
        assert (np.stack([ious >= t for t in (0.5, 0.3, 0.1)], 1) == recorded[:, 1:]).all()
    table = umedground.grounding_table(predicted, truth)
    assert [table[k] for k in ("mIoU", "AP50", "AP30", "AP10")] == pytest.approx(BOXES["mean_imgsize"], abs=1e-6)
    ious = umedground.sample_ious(predicted, truth)
    assert umedground.per_category(ious, BOXES["category_id"], 8) == pytest.approx(BOXES["category_iou"], abs=1e-6)
    hits = umedground.per_category(ious >= 0.5, BOXES["category_id"], 8)
    assert hits == pytest.approx(BOXES["category_acc50"], abs=1e-6)
    assert accuracy_at(ious)["acc_at_50"] == table["AP50"], "the same number under its honest name"


def test_umedground_phrases_and_noise():
    for row in PHRASES["phrase_postprocess"]:
        assert umedground.answer_text(row["decoded"]) == row["text_output"]
        assert umedground.spoken_phrase(row["decoded"]) == row["phrase_pred"]
    assert text.corpus_meteor_exact(PHRASES["hyps"], PHRASES["refs"]) == pytest.approx(PHRASES["METEOR"], abs=1e-12)
    y, x, c = np.mgrid[:64, :64, :3]
    image = ((3 * x + 5 * y + 41 * c + (x * y) // 7) % 256).astype(np.uint8)
    for variance in (0.01, 0.1):
        assert (reference_noise(image, variance) == BOXES[f"noise.var{variance}.seed0_uint8"]).all()


def test_unibiomed_masks_and_volumes():
    arrays = np.load(GOLDEN / "unibiomed.npz", allow_pickle=False)
    predicted, truth = [m > 0 for m in arrays["pred"]], [m > 0 for m in arrays["gt"]]
    pair = UNIBIOMED["pair"]
    assert unibiomed.matched_mean(predicted, truth) == pytest.approx(pair["compute_mean_dice_2pred_3gt"], abs=1e-12)
    assert unibiomed.matched_mean(predicted, truth, "iou") == pytest.approx(pair["compute_miou_2pred_3gt"], abs=1e-12)
    empty = np.zeros((2, 2), bool)
    assert unibiomed.matched_mean([empty], [empty]) == 1 and unibiomed.matched_mean([], truth) == 0
    for name, recorded in UNIBIOMED["volumes"].items():
        scores = unibiomed.volume_scores(arrays[f"{name}_pred"] > 0, arrays[f"{name}_gt"] > 0)
        if "raises" in recorded:
            assert scores["hd95"] == 0 and scores["dice"] == pytest.approx(1)
            continue
        expected = [np.nan if recorded[key] is None else recorded[key] for key in ("dice", "hd95", "nsd")]
        assert list(scores.values()) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_unibiomed_tables_and_regions():
    recorded = UNIBIOMED["seg2d"]
    rows = [
        {"expression": row["exp"], "dice": row["dice"], "iou": row["IoU"]}
        for name, row in recorded.items()
        if name != "mean" and row
    ]
    assert largest_difference(unibiomed.segmentation_table(rows), recorded["mean"]) < 1e-12
    for caption, short in UNIBIOMED["region"]["clean_caption"]:
        assert unibiomed.short_region(caption) == short
    for predicted, truth, right in UNIBIOMED["region"]["check"]:
        assert unibiomed.region_correct(predicted, truth) == right
    assert unibiomed.answer_accuracy(["no mass", "mass", "x", "y"], ["mass", "mass", "x", "z"]) == pytest.approx(0.75)
