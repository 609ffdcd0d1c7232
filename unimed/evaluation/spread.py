"""What several runs of one recipe differ by: means whose intervals draw runs and patients anew.

    rows = spread([read_cases(folder / "test" / "scores.jsonl") for folder in runs])

An interval over patients alone says how sure one trained model's score is. How much another seed changes it stands
beside: with few runs that is often the larger part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unimed.metrics.statistics import Interval

#: Kind of row -> measures of it: the name, what a row gives (None leaves it out), and what it is told apart by.
Value = Callable[[Mapping], float | None]


def _column(name: str) -> Value:
    return lambda row: row.get(name)


def _gain(name: str, baseline: str) -> Value:
    return lambda row: None if row.get(baseline) is None else float(row[name]) - float(row[baseline])


def _false_mask(row: Mapping) -> float | None:
    return None if row["present"] else float(row["predicted_voxels"] > 0)


def _instance_f1(row: Mapping) -> float | None:
    if "tp" not in row:
        return None  # of another protocol
    counted = 2 * row["tp"] + row["fp"] + row["fn"]
    return 2 * row["tp"] / counted if counted else None


MEASURES: dict[str, tuple[tuple[str, Value, tuple[str, ...]], ...]] = {
    "mask": (
        ("dice", _column("dice"), ("task", "target")),
        ("dice above the copied mask", _gain("dice", "copy_baseline_dice"), ("task", "target")),
    ),
    "box": (("miou", _column("miou"), ("target",)),),
    "answer": (
        ("correct", _column("correct"), ("task",)),
        ("majority answer", _column("majority_baseline"), ("task",)),
        ("correct above the majority answer", _gain("correct", "majority_baseline"), ("task",)),
        ("correct above black images", _gain("correct", "language_only"), ("task",)),
    ),
    # Findings in volumes; the protocol's F1 adds up all instances of a run, this is the mean of each finding's.
    "instances": (
        ("finding dice", _column("dice"), ("target",)),
        ("findings: dice", _column("dice"), ()),
        ("findings: hit rate", _column("hit"), ()),
        ("findings: instance F1", _instance_f1, ()),
    ),
    "presence": (("false masks", _false_mask, ("task",)),),
    "consistency": tuple(
        (name.replace("_", " "), _column(name), ())
        for name in ("paraphrase_mean", "paraphrase_worst", "paraphrase_variance", "mirror_dice")
    ),
}
#: Measures that have a row only where the run showed something.
_OF_WHAT_WAS_SHOWN = {name for name, _, _ in MEASURES["consistency"]}


def spread(runs: Sequence[Sequence[Mapping]], *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> list:
    """One line per measure: {"measure", "of", "cases", "value": Interval, "runs": values of each run}.

    Args:
        runs: rows of each run (`unimed.evaluation.cases`), of the same test set.

    Consistency is measured where a run points at something, so that runs have other cases of it; those of all runs are
    compared.

    Raises:
        ValueError: fewer than two runs, or runs whose cases differ.
    """
    if len(runs) < 2:
        raise ValueError(f"what runs differ by needs two at least, got {len(runs)}")
    tables: dict[tuple[str, str], list[dict]] = {}
    owners: dict[str, str] = {}
    for number, rows in enumerate(runs):
        for row in rows:
            # Each project hashes patients anew; the first run says which cases belong together.
            owner = owners.setdefault(str(row["case"]), str(row["group"]))
            for name, value_of, keys in MEASURES.get(row["kind"], ()):
                value = value_of(row)
                if value is None or np.isnan(float(value)):
                    continue
                of = ", ".join(str(row[key]) for key in keys)
                table = tables.setdefault((name, of), [defaultdict(list) for _ in runs])
                table[number][owner, str(row["case"]), row["target"]].append(float(value))
    lines = []
    for (name, of), table in tables.items():
        if name in _OF_WHAT_WAS_SHOWN:
            common = set.intersection(*(set(one) for one in table))
            table = [{key: one[key] for key in common} for one in table]
            if not common:
                continue
        if any(set(one) != set(table[0]) for one in table):
            raise ValueError(f"runs were not tested on the same cases: {name} {of} is of others in one of them")
        lines.append({"measure": name, "of": of} | _line(table, resamples, level, seed))
    return lines


def _line(table: Sequence[Mapping[tuple, Sequence[float]]], resamples: int, level: float, seed: int) -> dict:
    keys = sorted(table[0])
    values = np.array([[np.mean(one[key]) for key in keys] for one in table])  # [runs, cases]
    patients = sorted({owner for owner, *_ in keys})
    # Cases of one patient are drawn together; where all are of one, cases are drawn.
    names = patients if len(patients) > 1 else keys
    group = np.array([names.index(key[0] if len(patients) > 1 else key) for key in keys])
    sizes = np.bincount(group, minlength=len(names)).astype(float)
    sums = np.array([np.bincount(group, weights=run, minlength=len(names)) for run in values])
    by_run = values.mean(axis=1)
    draw = np.random.default_rng(seed)
    means = np.empty(resamples)
    for number in range(resamples):
        runs, chosen = draw.integers(0, len(values), len(values)), draw.integers(0, len(names), len(names))
        means[number] = sums[np.ix_(runs, chosen)].sum() / (len(values) * sizes[chosen].sum())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    value = Interval(float(by_run.mean()), float(low), float(high), level)
    return {"cases": len(keys), "value": value, "runs": [float(one) for one in by_run]}
