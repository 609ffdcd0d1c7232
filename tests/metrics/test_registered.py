"""What every registered metric promises: its best value, its range, NaN, untouched inputs, no care for order."""

import copy

import numpy as np
import pytest

from unimed.metrics.registered import KINDS, Metric, metric, metrics_of
from unimed.registry import METRICS, RegistryError, look_up, registered

ALL = registered(METRICS)


def masks(generator):
    truth = generator.random((5, 6, 7)) < 0.3
    truth[0, 0, 0] = True
    return [truth, generator.random((5, 6, 7)) < 0.3]


def pairs(kind, generator):
    """(perfect prediction, another prediction, truth, further arguments, order of items or None)."""
    if kind in ("mask", "surface"):
        truth, other = masks(generator)
        return truth.copy(), other, truth, ((1.0, 1.0, 2.0),) * (kind == "surface"), None
    if kind in ("box", "boxes"):
        corner = generator.random((4, 2)) * 40
        boxes = np.concatenate([corner, corner + 1 + generator.random((4, 2)) * 30], 1)
        truth, other = (boxes[0], boxes[1]) if kind == "box" else (boxes, boxes[:2] + 3)
        return truth.copy(), other, truth, (), (kind == "boxes" and "prediction") or None
    words = generator.choice(
        ["left lung", "a mass of 2.5 cm", "HER2+", "no acute process is seen", "liver"], 5
    ).tolist()
    if kind == "text":
        return words[0], words[1], words[0], (), None
    if kind in ("corpus", "phrases"):
        return list(words), words[::-1], words, (), "both" if kind == "corpus" else "prediction"
    if kind == "labels":
        truth = generator.integers(0, 3, 12)
        return truth.copy(), generator.integers(0, 3, 12), truth, (), "both"
    if kind in ("detection", "confidence"):
        truth = np.append(generator.random(10) < 0.5, [True, False])
        return truth.astype(float), generator.random(12), truth, (), "both"
    if kind == "instances":
        truth = generator.integers(0, 4, (8, 8))
        return truth.copy(), generator.integers(0, 4, (8, 8)), truth, (), None
    if kind == "similarity":
        truth = generator.integers(0, 3, 9)
        return np.eye(3)[truth], generator.random((9, 3)), truth, (), "both"
    uncertainty, risk = generator.random(9), generator.random(9)
    return (uncertainty, np.zeros(9)), None, (uncertainty, risk), (), "both"


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_metric_keeps_its_promises(name):
    one = ALL[name]
    assert one.name == name and one.kind in KINDS and one.better in ("higher", "lower") and one.aggregation
    if one.kind == "surface":
        pytest.importorskip("monai")
    low, high = one.range
    for seed in range(5):
        generator = np.random.default_rng(seed)
        best, other, truth, further, order = pairs(one.kind, generator)
        if one.kind == "selective":
            value, second = one(*best), one(*truth)
        else:
            kept = copy.deepcopy((best, other, truth))
            value, second = one(best, truth, *further), one(other, truth, *further)
            for before, after in zip(kept, (best, other, truth), strict=True):
                assert np.array_equal(before, after), "inputs stay as they were"
        if one.perfect is not None:
            assert value == pytest.approx(one.perfect, abs=1e-9)
            assert one.perfect == pytest.approx(high if one.better == "higher" else low), (
                "the best value ends the range"
            )
        for number in (value, second):
            assert isinstance(number, float) and (np.isnan(number) or low - 1e-9 <= number <= high + 1e-9)
        if one.unordered and order:
            turned = generator.permutation(len(truth[0] if one.kind == "selective" else truth))
            if one.kind == "selective":
                again = one(truth[0][turned], truth[1][turned])
            else:
                moved = [other[i] for i in (turned if order == "both" else generator.permutation(len(other)))]
                there = [truth[i] for i in turned] if order == "both" else truth
                again = one(np.array(moved) if one.kind not in ("corpus", "phrases") else moved, there, *further)
            assert again == pytest.approx(second, nan_ok=True, abs=1e-9)


EMPTY = {
    "mask": lambda: (np.zeros((3, 3), bool),) * 2,
    "surface": lambda: (np.zeros((3, 3), bool), np.zeros((3, 3), bool), (1, 1)),
    "boxes": lambda: ([], []), "phrases": lambda: ([], []), "corpus": lambda: ([], []), "labels": lambda: ([], []),
    "instances": lambda: (np.zeros((3, 3), int),) * 2, "detection": lambda: ([0.5], [True]), "text": lambda: ("", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name in ALL if ALL[name].kind in EMPTY))
def test_nan_comes_where_it_is_promised(name):
    one = ALL[name]
    value = one(*EMPTY[one.kind]())
    assert np.isnan(value) == bool(one.nan), f"{name} of nothing is {value}; promised: {one.nan or 'never NaN'}"
    if not one.nan:
        assert value == one.perfect, "nothing predicted where nothing is"


def test_a_metric_of_ones_own_is_in_rows_and_tables(monkeypatch):
    import unimed
    from unimed.geometry import Geometry
    from unimed.structures import Region, Sample

    monkeypatch.setattr(METRICS, "_module_dict", dict(METRICS.module_dict))

    @metric("volume_ratio", "mask", range=(0.0, 1.0))
    def volume_ratio(prediction, truth):
        """Smaller over larger size."""
        sizes = sorted((int(prediction.sum()), int(truth.sum())))
        return sizes[0] / max(sizes[1], 1)

    assert isinstance(look_up("volume_ratio", METRICS), Metric) and "volume_ratio" in metrics_of("mask")
    mask = np.ones((4, 4), bool)
    sample = Sample(
        (mask,), Geometry.pixels(), "s", regions=(Region("liver", mask=mask),), labels={"task": "referring"}
    )
    half = mask.copy()
    half[:2] = False
    rows = unimed.evaluate([unimed.Prediction("", (Region("liver", mask=half),))], [sample])
    assert rows[0]["volume_ratio"] == 0.5 and any(line["metric"] == "volume_ratio" for line in rows.means())
    with pytest.raises(ValueError, match="kind must be one of"):
        metric("x", "pictures")
    with pytest.raises(RegistryError, match="did you mean 'dice'"):
        look_up("dise", METRICS)
