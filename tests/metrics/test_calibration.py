"""Coverage, calibration and selective prediction on synthetic truth, against netcal, and against recorded formulas."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimed.commands.calibrate import calibrate
from unimed.metrics import reliability, selective
from unimed.metrics.calibration import Calibration, CalibrationError, Cases, box_uncertainty
from unimed.metrics.conformal import ConformalBoxes, conformal_quantile, control_risk, mask_margin, mask_threshold
from unimed.metrics.statistics import clopper_pearson
from unimed.structures import Region

ROOT = Path(__file__).parent.parent.parent
RECORDED = np.load(ROOT / "tests" / "golden" / "metrics" / "uncertainty_formulas.npz", allow_pickle=False)


def synthetic(n, seed=0, patients=None):
    """True boxes, predictions off by known Gaussian noise, the model's spread (half of it) and its confidence."""
    generator = np.random.default_rng(seed)
    corner, side = generator.uniform(50, 300, (n, 2)), generator.uniform(20, 120, (n, 2))
    truth = np.concatenate([corner, corner + side], axis=1)
    sigma = generator.uniform(1, 12, (n, 1)) * np.ones((1, 4))
    predicted = truth + sigma * generator.normal(size=(n, 4))
    predicted = np.concatenate(
        [np.minimum(predicted[:, :2], predicted[:, 2:] - 2), np.maximum(predicted[:, 2:], predicted[:, :2] + 2)], axis=1
    )
    return [
        {
            "case_id": f"c{i}",
            "group": f"p{i % (patients or n)}",
            "target": "mass" if i % 2 else "effusion",
            "predicted_box_xyxy_px": predicted[i].tolist(),
            "true_box_xyxy_px": truth[i].tolist(),
            "box_std_px": (sigma[i] / 2).tolist(),
            "confidence": float(np.clip(1 - sigma[i, 0] / 40, 0, 1)),
            "image_size_hw": [512, 512],
        }
        for i in range(n)
    ]


def test_spread_is_relative_to_the_size_of_the_box():
    sigma = np.array([[1.0, 2.0, 3.0, 2.0]] * 3)
    boxes = np.array([[0, 0, 10, 10], [5, 5, 45, 45], [0, 0, 4, 25]], dtype=float)
    assert box_uncertainty(sigma, boxes) == pytest.approx([0.2, 0.05, 0.2])


@pytest.mark.parametrize("scale", ["pixel", "size", "sigma"])
def test_ninety_percent_means_ninety_percent(scale):
    """Twenty times 1000 held-out draws: 0.9 lies within the Clopper-Pearson interval as often as it should."""
    learn, test = slice(0, 2000), slice(2000, 3000)
    fits, measured = 0, []
    for seed in range(20):
        rows = Cases.read(synthetic(3000, seed=seed))
        fitted = ConformalBoxes.fit(
            rows.predicted[learn], rows.truth[learn], alpha=0.1, scale=scale, sigma=rows.sigma[learn]
        )
        (row,) = fitted.coverage(rows.predicted[test], rows.truth[test], sigma=rows.sigma[test])
        fits += row["outer_coverage"].low <= 0.9 <= row["outer_coverage"].high
        measured.append((row["outer_coverage"].value, row["inner_coverage"].value))
        assert row["boxes"] == 1000 and row["stretch"] > 1
    outer, inner = np.mean(measured, axis=0)
    # The margins are learned from 2000 draws, so that the interval of the test draws alone is missed a little often.
    assert fits >= 16, f"within the interval in {fits} of 20"
    assert outer == pytest.approx(0.9, abs=0.008)
    # A core that vanished lies within every box, so the inner side may only be too careful.
    assert inner >= 0.892
    # The check can fail: margins of 60 % do not cover 90 %.
    weak = ConformalBoxes.fit(rows.predicted[learn], rows.truth[learn], alpha=0.4, scale=scale, sigma=rows.sigma[learn])
    (row,) = weak.coverage(rows.predicted[test], rows.truth[test], sigma=rows.sigma[test])
    assert row["outer_coverage"].high < 0.9


def test_coverage_holds_in_every_stratum_only_when_asked_for():
    rows = Cases.read(synthetic(6000, seed=2))
    noisy = np.array([name == "mass" for name in rows.classes])
    predicted = np.where(noisy[:, None], rows.truth + 4 * (rows.predicted - rows.truth), rows.predicted)
    predicted[:, 2:] = np.maximum(predicted[:, 2:], predicted[:, :2] + 2)
    half = slice(0, 4000), slice(4000, 6000)

    def fit(by):
        return ConformalBoxes.fit(predicted[half[0]], rows.truth[half[0]], classes=rows.classes[:4000], by=by)

    test = predicted[half[1]], rows.truth[half[1]]
    by_class = {r["stratum"]: r for r in fit(("class",)).coverage(*test, classes=rows.classes[4000:])}
    assert set(by_class) == {"all", "class=effusion", "class=mass"}
    for row in by_class.values():
        assert row["outer_coverage"].low <= 0.9 <= row["outer_coverage"].high
    pooled = fit(())
    outer, _ = pooled.boxes(test[0])
    held = (outer[:, :2] <= test[1][:, :2]).all(1) & (outer[:, 2:] >= test[1][:, 2:]).all(1)
    assert clopper_pearson(int(held[noisy[half[1]]].sum()), int(noisy[half[1]].sum())).high < 0.9
    sizes = fit(("size", "class"))
    assert len(sizes.outer) == 7 and sizes.margin("never seen", "outer") == sizes.outer["all"]


def test_repeated_patients_do_not_buy_certainty():
    """Ten copies of five patients are five patients: no finite margin can promise 90 %."""
    rows = Cases.read(synthetic(5, seed=3))
    predicted, truth = np.repeat(rows.predicted, 10, 0), np.repeat(rows.truth, 10, 0)
    assert np.isfinite(ConformalBoxes.fit(predicted, truth).outer["all"])
    with pytest.raises(ValueError, match="5 calibration patients are too few.*at least 9"):
        ConformalBoxes.fit(predicted, truth, groups=np.repeat(np.arange(5), 10))


def test_clustered_quantile_covers_new_patients():
    generator = np.random.default_rng(5)

    def draw(patients):
        level = generator.normal(size=patients)
        return level[:, None] + 0.1 * generator.normal(size=(patients, 5))

    inside = []
    for _ in range(200):
        margin = conformal_quantile(draw(39).ravel(), 0.1, np.repeat(np.arange(39), 5))
        inside.append((draw(40)[:, 0] <= margin).mean())
    assert 0.89 <= np.mean(inside) <= 0.93


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.sampled_from([0.05, 0.1, 0.25, 0.5]))
def test_quantile_is_the_textbook_order_statistic(scores, alpha):
    rank = int(np.ceil(round((len(scores) + 1) * (1 - alpha), 9)))
    expected = np.inf if rank > len(scores) else sorted(scores)[rank - 1]
    assert conformal_quantile(scores, alpha) == expected


@pytest.mark.parametrize("alpha", ["0.1", "0.2"])
def test_margins_equal_the_recorded_formulas(alpha):
    def fit(scale):
        return ConformalBoxes.fit(
            RECORDED["conf.cal_pred_xyxy"], RECORDED["conf.cal_gt_xyxy"], alpha=float(alpha), scale=scale,
            sigma=RECORDED["conf.cal_sigma"],
        )  # fmt: skip

    for scale, name in (("pixel", "add"), ("size", "mult"), ("sigma", "sigma")):
        assert fit(scale).outer["all"] == pytest.approx(float(RECORDED[f"conf.a{alpha}.{name}_qhat"]), abs=1e-12)
    assert fit("pixel").inner["all"] == pytest.approx(float(RECORDED[f"conf.a{alpha}.inner_qhat"]), abs=1e-12)
    outer, _ = fit("pixel").boxes(RECORDED["conf.test_pred_xyxy"])
    assert outer == pytest.approx(RECORDED[f"conf.a{alpha}.add_outer_box"], abs=1e-12)


def test_calibration_and_selection_equal_the_recorded_formulas():
    confidence, iou = RECORDED["cal.conf"], RECORDED["rc.iou"]
    assert reliability.ece(confidence, RECORDED["cal.hit50"]) == pytest.approx(float(RECORDED["cal.ECE10_iou50"]))
    assert reliability.laece(confidence, iou, bins=10) == pytest.approx(float(RECORDED["cal.LaECE0_10"]))
    assert reliability.brier(confidence, RECORDED["cal.hit50"]) == pytest.approx(float(RECORDED["cal.brier50"]))
    pair = RECORDED["rc.uncertainty"], 1 - iou
    assert selective.aurc(*pair) == pytest.approx(float(RECORDED["rc.AURC"]), abs=1e-12)
    assert selective.e_aurc(*pair) == pytest.approx(float(RECORDED["rc.E_AURC"]), abs=1e-12)
    assert selective.augrc(*pair) == pytest.approx(float(RECORDED["rc.AUGRC"]), abs=1e-12)
    coverage, risk = selective.risk_coverage(*pair)
    assert coverage == pytest.approx(RECORDED["rc.curve_coverage"]) and risk == pytest.approx(RECORDED["rc.curve_risk"])


def test_risk_control_of_masks():
    generator = np.random.default_rng(6)

    def cases(n):
        truths = [np.pad(np.ones((6, 6), bool), generator.integers(2, 5)) for _ in range(n)]
        maps = [np.clip(np.where(t, 0.6, 0.2) + 0.25 * generator.normal(size=t.shape), 0, 1) for t in truths]
        return maps, truths

    threshold = mask_threshold(*cases(300), alpha=0.1)
    missed = [1 - (p >= threshold)[t].mean() for p, t in zip(*cases(300), strict=True)]
    assert 0.07 < np.mean(missed) <= 0.11 and 0 < threshold < 0.6
    maps, truths = cases(200)
    shrunk = [t & np.roll(t, 1, 0) & np.roll(t, -1, 1) for t in truths]
    margin = mask_margin(shrunk, truths, alpha=0.1)
    assert 0.9 < margin <= 1.5, "one voxel was cut off, one voxel of margin brings it back"
    assert mask_margin(shrunk, truths, alpha=0.1, spacing_mm=(2, 2)) == pytest.approx(2 * margin, abs=0.3)
    with pytest.raises(ValueError, match="at least 9 are needed"):
        mask_threshold(maps[:5], truths[:5], alpha=0.1)
    with pytest.raises(ValueError, match=r"truths\[0\] is empty"):
        mask_threshold(maps[:1], [np.zeros_like(truths[0])])
    with pytest.raises(ValueError, match="from daring to careful"):
        control_risk(np.array([[0.1, 0.2]]), 0.1)


def overconfident(n, seed):
    generator = np.random.default_rng(seed)
    truth = generator.uniform(0.05, 0.95, n)
    return 1 / (1 + ((1 - truth) / truth) ** 2.5), (generator.random(n) < truth).astype(float)


@pytest.mark.parametrize("kind", reliability.MAPS)
def test_calibration_brings_ece_below_three_percent(kind):
    confidence, outcome = overconfident(4000, 0)
    fitted = reliability.ProbabilityMap.fit(kind, confidence, outcome)
    fresh, truth = overconfident(20000, 1)
    assert reliability.ece(fresh, truth) > 0.08
    assert reliability.ece(fitted(fresh), truth) < 0.03
    if kind == "temperature":
        assert fitted.parameters["temperature"][0] == pytest.approx(2.5, abs=0.2), "the sharpening is found again"
    if kind == "platt":
        assert fitted.parameters["weight"][0] == pytest.approx(0.4, abs=0.03)
    again = reliability.ProbabilityMap(**json.loads(json.dumps(dataclasses.asdict(fitted))))
    assert (again(fresh) == fitted(fresh)).all()
    assert (np.diff(fitted(np.linspace(0, 1, 50))) >= -1e-12).all(), "more confidence never means less"


@pytest.mark.filterwarnings("ignore")
def test_errors_and_maps_equal_netcal():
    """netcal is the oracle of ECE and D-ECE (torch is imported by it, hence the importorskip)."""
    metrics = pytest.importorskip("netcal.metrics")
    confidence, outcome = overconfident(500, 3)
    assert reliability.ece(confidence, outcome, 10) == pytest.approx(
        metrics.ECE(10).measure(confidence, outcome.astype(int)), abs=1e-9
    )
    places = np.random.default_rng(4).random((500, 2))
    features = np.concatenate([confidence[:, None], places], axis=1)
    assert reliability.d_ece(confidence, outcome, places, 5) == pytest.approx(
        metrics.ECE(5, detection=True).measure(features, outcome.astype(int)), abs=1e-9
    )


def test_shuffled_uncertainty_is_worth_nothing():
    generator = np.random.default_rng(7)
    risk = generator.random(400) ** 2
    uncertainty = risk + 0.2 * generator.normal(size=400)
    shuffled = [selective.aurc(generator.permutation(uncertainty), risk) for _ in range(300)]
    standard_error = np.std(shuffled) / np.sqrt(len(shuffled))
    assert abs(np.mean(shuffled) - selective.random_aurc(risk)) < 3 * standard_error
    assert selective.aurc(uncertainty, risk) < min(shuffled), "the check can fail: the real one is far better"
    assert selective.aurc(np.ones(400), risk) == pytest.approx(selective.random_aurc(risk))
    assert selective.e_aurc(risk, risk) == 0 and selective.augrc(np.ones(1), [0.5]) == 0.5


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=20), st.randoms())
def test_ties_do_not_depend_on_the_order_of_cases(items, random):
    first = selective.aurc(*zip(*items, strict=True))
    random.shuffle(items)
    assert selective.aurc(*zip(*items, strict=True)) == pytest.approx(first)


def test_threshold_with_a_promise():
    generator = np.random.default_rng(8)
    broken = 0
    for _ in range(60):
        uncertainty = generator.random(400)
        failure = generator.random(400) < uncertainty * 0.5
        chosen = selective.guaranteed_threshold(uncertainty, failure, 0.2, level=0.9)
        # Failures among kept cases have the true rate limit / 4 by construction.
        broken += chosen is not None and chosen["uncertainty"] / 4 > 0.2
    assert broken <= 10
    assert chosen is not None and 0.3 < chosen["coverage"] < 0.8
    assert selective.guaranteed_threshold(uncertainty, np.ones(400, bool), 0.2) is None


def test_calibration_file_round_trip_and_regions(tmp_path):
    rows = synthetic(1200, seed=9, patients=300)
    calibration = Calibration.fit(rows[:800], by=("class", "size"), scale="sigma")
    assert calibration.sigma == pytest.approx([2] * 4, abs=0.25), "the model states half of its spread"
    loaded = Calibration.load(calibration.save(tmp_path / "calibration.json"))
    assert loaded == calibration
    raw = Region("mass", box_xyxy_px=(100, 100, 160, 150), box_std_px=(3, 3, 3, 3), confidence=0.8)
    region = loaded.apply(raw, image_size_hw=(155, 512))
    assert region.box_std_px == pytest.approx(np.array(calibration.sigma) * 3)
    assert 0 < region.confidence < 1 and region.confidence != 0.8
    outer, inner = region.box_outer_xyxy_px, region.box_inner_xyxy_px
    assert outer[0] < 100 < inner[0] < inner[2] < 160 < outer[2] and outer[3] == 155
    assert loaded.apply(Region("mass", presence=0.2)).box_outer_xyxy_px is None
    with pytest.raises(CalibrationError, match="'mass' is calibrated already"):
        loaded.apply(region)
    tiny = loaded.apply(Region("mass", box_xyxy_px=(0, 0, 4, 4), box_std_px=(9, 9, 9, 9), confidence=0.5))
    assert tiny.box_inner_xyxy_px is None, "no pixel is certain"
    with pytest.raises(CalibrationError, match="box_std_px, and the region has none"):
        loaded.apply(Region("mass", box_xyxy_px=(0, 0, 4, 4), confidence=0.5))
    report = loaded.evaluate(rows[800:], resamples=50)
    said, calibrated = report["reliability"]
    assert calibrated["ece"].value < 0.06 and calibrated["brier"].value <= said["brier"].value + 0.01
    stated, scaled = (row["within_1_sigma"] for row in report["sigma"])
    assert stated < 0.5 and scaled == pytest.approx(0.68, abs=0.06)
    assert report["selective"]["aurc"].high < report["selective"]["random_aurc"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not JSON"),
        ("{}", "not a calibration file"),
        ('{"format": "unimed-calibration", "version": 9}', "version 9"),
        ('{"format": "unimed-calibration", "version": 1, "boxes": null}', "field missing"),
    ],
)
def test_broken_calibration_files_are_named(tmp_path, content, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CalibrationError, match=f"c.json: {message}"):
        Calibration.load(tmp_path / "c.json")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"true_box_xyxy_px": [5, 5, 5, 9]}, "row 1: true_box_xyxy_px .* has no area"),
        ({"predicted_box_xyxy_px": [0, 0, float("nan"), 9]}, "row 1: predicted_box_xyxy_px holds NaN"),
        ({"confidence": None}, "row 1: confidence is missing"),
        ({"box_std_px": [1, 2]}, "box_std_px must be"),
        ({"box_std_px": [1, 2, 0, 1]}, "row 1: box_std_px must be positive"),
    ],
)
def test_broken_rows_are_named(change, message):
    rows = synthetic(3)
    rows[1] = rows[1] | change
    with pytest.raises(CalibrationError, match=message):
        Cases.read(rows)
    with pytest.raises(CalibrationError, match="none of 1 rows"):
        Cases.read([{"case_id": "x"}])


@pytest.mark.slow
def test_command_line(tmp_path, capsys):
    cases = tmp_path / "cases.jsonl"
    rows = synthetic(400, patients=200) + [{"case_id": "absent", "group": "p0", "true_box_xyxy_px": None}]
    cases.write_text("\n".join(json.dumps(row) for row in rows))
    command = [
        sys.executable,
        "tools/calibrate.py",
        str(cases),
        "--output",
        str(tmp_path / "c.json"),
        "--plots",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "outer_coverage" in done.stdout and "tools/calibrate.py" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {
        "cases.jsonl", "c.json", "c.md", "c.report.json", "risk_coverage.png", "reliability.png",
    }  # fmt: skip
    assert Calibration.load(tmp_path / "c.json").provenance["patients"] == 100
    cases.write_text("{}\n")
    assert calibrate([str(cases), "--test", str(cases)]) == 1
    assert "error: none of 1 rows" in capsys.readouterr().err
