"""Prediction folders recorded from the published demos score as their metric scripts printed."""

import json
import shutil

import numpy as np
import pytest
from golden_files import SMALL
from PIL import Image

from unimed.data.readers import unibiomed_tests as evaluation_sets
from unimed.evaluation.benchmarks import benchmark
from unimed.evaluation.scorers.prediction_folders import published_text, score_segmentation, score_volumes
from unimed.metrics import coco_captions

DISEASE = benchmark("unibiomed/disease")
GOLDEN = SMALL / "unibiomed" / "metrics"


def recorded(kind):
    return (GOLDEN / kind / "pred.txt").read_text()


def answers(kind, **options):
    folder = GOLDEN / kind
    masks = None if kind == "medtrinity" else folder / "data" / "test_mask"
    options.setdefault("java", False)
    return benchmark(f"unibiomed/{kind}").score(folder / "pred", folder / "data" / "test.json", masks, **options)


@pytest.mark.parametrize("kind", ["grg", "gvqa", "disease", "medtrinity"])
def test_answers_score_as_published(kind):
    scores = answers(kind)
    lines = published_text(scores.published).strip().splitlines()
    expected = [line for line in recorded(kind).strip().splitlines() if line and not line.startswith("METEOR")]
    if kind == "gvqa":  # the published script only prints its accuracy
        assert lines.pop(0) == json.loads((GOLDEN / kind / "printed.json").read_text())["printed_accuracy"][0]
    assert lines == expected
    interval = scores.summary.get("dice_all_masks_mean_over_images")
    assert interval is None or interval.low <= interval.value <= interval.high


@pytest.mark.skipif(bool(coco_captions.missing()), reason=coco_captions.missing() or "java is there")
@pytest.mark.parametrize("kind", ["grg", "gvqa", "medtrinity"])
def test_meteor_of_the_coco_tools(kind):
    lines = published_text(answers(kind, java=True).published).strip().splitlines()
    wanted = [line for line in recorded(kind).strip().splitlines() if line]
    assert lines[len(lines) - len(wanted) :] == wanted and any(line.startswith("METEOR") for line in wanted)


def test_missing_java_is_named(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(coco_captions.shutil, "which", lambda name: None)
    scores, remarks = coco_captions.caption_scores(["a mass"], ["a mass"])
    assert "METEOR" not in scores and "no java on the PATH" in remarks[0]
    with pytest.raises(RuntimeError, match="no java"):
        coco_captions.caption_scores(["a mass"], ["a mass"], java=True)
    assert "no java" in coco_captions.spice_missing()


def difference(ours, theirs):
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        return max([difference(ours[k], theirs[k]) for k in theirs], default=0.0)
    return 0.0 if isinstance(theirs, str) and ours == theirs else abs(ours - theirs)


def test_masks_score_as_published():
    cases = evaluation_sets.segmentation_cases(GOLDEN / "seg2d" / "data", "test.json")
    scores = score_segmentation(cases, GOLDEN / "seg2d" / "pred", compat="reference")
    assert difference(scores.published, json.loads((GOLDEN / "seg2d/pred/results.json").read_text())) < 1e-12
    ours = score_segmentation(cases, GOLDEN / "seg2d" / "pred")
    assert ours.summary["cases"] == 5 and "resized" in ours.remarks[0]


def test_volumes_score_as_published():
    cases = evaluation_sets.volume_cases(GOLDEN / "seg3d" / "data", "meta_test.json")
    scores = score_volumes(cases, GOLDEN / "seg3d" / "pred", compat="reference")
    assert difference(scores.published, json.loads((GOLDEN / "seg3d/pred/results.json").read_text())) < 1e-12
    assert scores.rows[0]["published_hd95_vox"] > 0 and 0 < scores.summary["nsd_2vox_median_over_cases"] <= 1


def test_slices_without_the_object_count_by_default(tmp_path):
    shutil.copytree(GOLDEN / "seg3d", tmp_path / "s")
    path = tmp_path / "s" / "data" / "meta_test.json"
    content = json.loads(path.read_text())
    for entry in content["volumes"].values():
        for expression in entry["expressions"].values():
            del expression["mask_file"][2:], expression["img_file"][2:]
    path.write_text(json.dumps(content))
    cases = evaluation_sets.volume_cases(tmp_path / "s" / "data", "meta_test.json")
    free = score_volumes(cases, tmp_path / "s" / "pred", compat="reference").summary["dice_mean_over_cases"]
    whole = score_volumes(cases, tmp_path / "s" / "pred").summary["dice_mean_over_cases"]
    assert whole.value < free.value


def test_missing_and_superfluous_answers_cost(tmp_path):
    shutil.copytree(GOLDEN / "disease", tmp_path / "d")
    (tmp_path / "d/pred/case0.json").unlink()
    scores = DISEASE.score(tmp_path / "d/pred", tmp_path / "d/data/test.json", tmp_path / "d/data/test_mask")
    assert scores.rows[0]["dice"] == 0 and "1 of 4" in scores.remarks[0]
    text = scores.write(tmp_path / "out", "python demo/metrics_grounded_disease.py")
    assert "Research use only" in text and (tmp_path / "out" / "scores.jsonl").is_file()
    first = json.loads((tmp_path / "d/pred/case1.json").read_text())
    extra = np.zeros((40, 50), np.uint8)
    extra[:3, :3] = 255
    Image.fromarray(extra).save(tmp_path / "d/data/test_mask/case1.png")
    assert first["pred_masks"][0]["counts"] == "`n1"  # it shows nothing, the truth now has something
    scores = DISEASE.score(tmp_path / "d/pred", tmp_path / "d/data/test.json", tmp_path / "d/data/test_mask")
    assert scores.rows[1]["dice"] == 0
