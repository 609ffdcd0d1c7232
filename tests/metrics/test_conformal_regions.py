"""The bound on false masks, on drawn patients; margins of masks; the calibration file that holds both."""

import numpy as np
import pytest

from unimed.commands.calibrate import calibrate
from unimed.evaluation.tables import write_cases
from unimed.metrics.calibration import Calibration
from unimed.metrics.conformal_regions import ConformalMasks, ConformalPresence, cover_distance, grown
from unimed.structures import Region


def prompts(patients, seed, each=4):
    """Presence of absent prompts: every patient has a level of their own."""
    generator = np.random.default_rng(seed)
    level = generator.normal(size=(patients, 1))
    presence = 1 / (1 + np.exp(-(level + 0.5 * generator.normal(size=(patients, each)))))
    return presence.ravel(), np.repeat(np.arange(patients), each).astype(str)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
def test_false_masks_of_new_patients_stay_below_alpha(alpha):
    rates = []
    for seed in range(300):
        presence, groups = prompts(60, seed)
        fitted = ConformalPresence.fit(presence, alpha, groups)
        new, _ = prompts(60, 10_000 + seed)
        rates.append((new >= fitted.threshold).mean())
    mean, error = np.mean(rates), np.std(rates) / 300**0.5
    assert mean <= alpha + 3 * error, (mean, error)
    assert mean >= alpha - 1 / 61 - 3 * error, "nor is the threshold far more careful than it has to be"


def test_every_kind_of_prompt_keeps_the_bound():
    presence = np.concatenate([np.linspace(0, 0.3, 50), np.linspace(0, 0.9, 50)])
    kinds = ["absent"] * 50 + ["nonsense"] * 50
    fitted = ConformalPresence.fit(presence, 0.1, kinds=kinds)
    assert (presence[50:] >= fitted.threshold).mean() <= 0.1
    pooled = ConformalPresence.fit(presence, 0.1)
    assert (presence[50:] >= pooled.threshold).mean() > 0.1, "pooled, one kind pays for the other"
    assert fitted.prompts == {"absent": 50, "nonsense": 50}


def test_too_few_patients_are_named():
    with pytest.raises(ValueError, match="5 patients.*'absent'.*at least 9"):
        ConformalPresence.fit(np.linspace(0, 1, 20), 0.1, groups=[i % 5 for i in range(20)])
    with pytest.raises(ValueError, match="not there"):
        ConformalPresence.fit([])


def test_a_model_that_is_always_sure_shows_nothing():
    fitted = ConformalPresence.fit([1.0] * 20, 0.1)
    assert fitted.threshold > 1
    rows = fitted.rates([1.0] * 4, [False, False, True, True], list("abcd"), ["absent"] * 4)
    rates = {row["prompts"]: row["conformal"].value for row in rows}
    assert rates == {"absent": 0.0, "present": 1.0} and rows[0]["usual"].value == 1.0


def test_masks_grow_until_they_cover():
    truth, found = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    truth[10:30, 10:30], found[14:26, 14:26] = True, True
    distance = cover_distance(found, truth)
    assert (grown(found, distance) & truth).sum() >= 0.95 * truth.sum() > (grown(found, distance - 1) & truth).sum()
    assert cover_distance(truth, truth) == 0 and cover_distance(np.zeros_like(truth), truth) is None
    assert not grown(np.zeros_like(truth), 3).any()
    generator = np.random.default_rng(0)
    held = []
    for _ in range(200):
        fitted = ConformalMasks.fit(generator.exponential(5, 39), 0.1)
        held.append(fitted.coverage(generator.exponential(5, 39), list(range(39)), resamples=2).value)
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def rows(patients, seed=0):
    generator = np.random.default_rng(seed)
    result = []
    for patient in range(patients):
        common = dict(group=f"g{seed}-{patient}", dataset="", modality="", target="mass")
        for kind in ("absent", "nonsense"):
            said = float(generator.beta(2, 3))
            result.append(dict(common, case=f"{patient}{kind}", kind="presence", task=kind, present=False,
                               presence=said, predicted_voxels=9 * (said >= 0.5)))  # fmt: skip
        said = float(generator.beta(6, 2))
        result.append(dict(common, case=f"{patient}p", kind="presence", task="referring", present=True, presence=said,
                           predicted_voxels=9 * (said >= 0.5)))  # fmt: skip
        sure = float(generator.uniform())
        result.append(dict(common, case=f"{patient}p", kind="mask", task="referring", dice=sure, iou=sure**2,
                           confidence=sure, cover_95_px=20 * (1 - sure)))  # fmt: skip
    return result


def test_a_calibration_of_regions_is_learned_saved_and_applied(tmp_path):
    learned = Calibration.fit(rows(60))
    learned.save(tmp_path / "c.json")
    again = Calibration.load(tmp_path / "c.json")
    assert again == learned and again.boxes is None and again.masks.margin_px > 0
    report = again.evaluate(rows(60, seed=1), resamples=20)
    false = {row["prompts"]: row for row in report["presence"]}
    assert set(false) == {"absent", "nonsense", "present"}
    assert false["absent"]["conformal"].value <= 0.2 < false["absent"]["usual"].value
    assert 0.8 < report["masks"][0]["covered"].value <= 1
    before, after = report["mask_reliability"]
    assert after["ece"].value < before["ece"].value
    mask = np.zeros((20, 20), bool)
    mask[8:12, 8:12] = True
    region = Region("mass", mask=mask, confidence=0.9, presence=0.9, box_xyxy_px=(8.0, 8.0, 12.0, 12.0))
    shown = again.apply(region)
    assert shown.box_outer_xyxy_px is None and shown.confidence != region.confidence
    assert again.outer_mask(region).sum() > mask.sum()


def test_the_verb_writes_the_threshold_and_what_it_is_worth(tmp_path, capsys):
    write_cases(tmp_path / "val.jsonl", rows(40))
    write_cases(tmp_path / "test.jsonl", rows(40, seed=1))
    code = calibrate([str(tmp_path / "val.jsonl"), "--test", str(tmp_path / "test.jsonl"), "--output",
                      str(tmp_path / "c.json"), "--plots", str(tmp_path)])  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0 and "masks are shown from presence" in said and "false masks" in said and "nonsense" in said
    assert Calibration.load(tmp_path / "c.json").presence.alpha == 0.1
    write_cases(tmp_path / "few.jsonl", rows(4))
    assert calibrate([str(tmp_path / "few.jsonl"), "--output", str(tmp_path / "d.json")]) == 1
