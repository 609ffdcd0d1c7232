"""Several runs on the same cases: who is better, by how much, how sure is that, and where.

Patients are what is resampled, permuted and counted; cases of one patient are not independent. A run is a list of rows
of the schema (`unimed.evaluation.cases`), as `Rows.save` and `unimed test` write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from unimed.evaluation.cases import renamed
from unimed.metrics.comparison import effect_sizes, holm, rank_distribution, sign_flip_test
from unimed.metrics.statistics import Interval, bootstrap_mean, paired_difference
from unimed.registry import METRICS, registered

#: What makes two rows of two runs be about the same thing.
KEY = ("dataset", "case", "task", "target", "kind")
#: Strata every comparison is shown by, where rows differ in them.
STRATA = ("dataset", "modality", "site", "task", "target", "size")
SIZES = ("small", "medium", "large")


class ComparisonError(ValueError):
    """Runs that cannot be compared; the message says which and why."""


@dataclass(frozen=True)
class Aligned:
    """Values of one metric of several runs on the same cases.

    Attributes:
        names: of the runs.
        values: [runs, cases].
        cases: a row of the first run per case, for strata.
        groups: patient of each case.
        left_out: run -> how many cases only it has, or it alone misses.
    """

    metric: str
    better: str
    names: tuple[str, ...]
    values: np.ndarray
    cases: tuple[Mapping, ...]
    groups: tuple[str, ...]
    left_out: Mapping[str, int]


def direction(metric: str) -> str:
    """ "higher" or "lower": which way a metric is better; a column that is no registered metric goes by its name."""
    known = registered(METRICS)
    if metric in known:
        return known[metric].better
    return "lower" if metric.endswith(("_error", "_mask_rate", "_mm")) else "higher"


def align(runs: Mapping[str, Sequence[Mapping]], metric: str, *, common: bool = False, **fixed) -> Aligned:
    """The values of `metric` of all runs, case by case.

    Several rows of one case and target (a superfluous mask is a row of its own) count by their mean.

    Args:
        runs: name -> rows.
        common: leave out cases that not all runs have; else they are an error.
        fixed: columns that must have this value, such as `kind="mask"` or `task="referring"`.

    Raises:
        ComparisonError: fewer than one run, no row with the metric, patients that differ between runs, or other cases.
    """
    if not runs:
        raise ComparisonError("no run to compare")
    found: dict[str, dict[tuple, list[float]]] = {}
    about: dict[tuple, Mapping] = {}
    for name, rows in runs.items():
        table = found.setdefault(name, {})
        for row in map(renamed, rows):
            if row.get(metric) is None or any(str(row.get(key, "")) != str(value) for key, value in fixed.items()):
                continue
            value = float(row[metric])
            if np.isnan(value):
                continue
            key = tuple(str(row.get(part, "")) for part in KEY)
            table.setdefault(key, []).append(value)
            known = about.setdefault(key, row)
            if known.get("group", "") != row.get("group", ""):
                raise ComparisonError(
                    f"{name}: case {row.get('case')!r} is of another patient than in the other runs; score all of them "
                    "in one project (they share .patient_salt) or set UNIMED_PATIENT_SALT"
                )
        if not table:
            columns = sorted({c for row in rows for c in row}) if rows else []
            where = "".join(f", {key} {value!r}" for key, value in fixed.items())
            raise ComparisonError(f"{name}: no row with a value of {metric!r}{where}; its columns are {columns}")
    every = list(dict.fromkeys(key for table in found.values() for key in table))
    shared = [key for key in every if all(key in table for table in found.values())]
    left_out = {name: sum(key not in table for key in every) for name, table in found.items()}
    if len(shared) < len(every) and not common:
        missing = ", ".join(f"{name} misses {count}" for name, count in left_out.items() if count)
        example = next(key for key in every if key not in shared)
        raise ComparisonError(
            f"runs are not about the same cases ({missing} of {len(every)}; e.g. {'/'.join(filter(None, example))}); "
            "score them on the same data, or compare what they share with --common"
        )
    if not shared:
        raise ComparisonError(f"runs share no case with a value of {metric!r}")
    values = np.array([[np.mean(table[key]) for key in shared] for table in found.values()])
    groups = tuple(str(about[key].get("group") or about[key].get("case")) for key in shared)
    cases = tuple(about[key] for key in shared)
    return Aligned(metric, direction(metric), tuple(found), values, cases, groups, left_out)


def ranking(aligned: Aligned, *, resamples: int = 1000, seed: int = 0) -> list[dict]:
    """One line per run, the best first: mean with interval, rank, and how stable that rank is over patients.

    `rank_first` is the share of bootstrap samples in which it is first (ties in part), `rank_95` the ranks between
    which it lies in 95 % of them.
    """
    rank, drawn = rank_distribution(
        aligned.values, aligned.groups, higher_is_better=aligned.better == "higher", resamples=resamples, seed=seed
    )
    best = drawn.min(1, keepdims=True) == drawn
    first = (best / best.sum(1, keepdims=True)).mean(0)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    patients = len(set(aligned.groups))
    lines = []
    for place in np.argsort(rank, kind="stable"):
        mean = bootstrap_mean(aligned.values[place], groups=aligned.groups, resamples=resamples, seed=seed)
        lines.append(
            {
                "run": aligned.names[place],
                "rank": float(rank[place]),
                aligned.metric: mean,
                "rank_first": float(first[place]),
                "rank_95": f"{low[place]:g} to {high[place]:g}" if patients > 1 else "",
                "cases": len(aligned.groups),
                "patients": patients,
            }
        )
    return lines


def stability(aligned: Aligned, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Kendall's tau between the ranking of all cases and rankings of bootstrap samples of patients: mean and 95 %.

    1 is the same order in every sample. NaN for fewer than two runs or patients, or where all runs are equal.
    """
    from scipy.stats import kendalltau

    if len(aligned.names) < 2 or len(set(aligned.groups)) < 2:
        return Interval(float("nan"), float("nan"), float("nan"))
    rank, drawn = rank_distribution(
        aligned.values, aligned.groups, higher_is_better=aligned.better == "higher", resamples=resamples, seed=seed
    )
    taus = np.array([kendalltau(rank, one).statistic for one in drawn]) if len(set(rank)) > 1 else np.array([np.nan])
    taus = taus[~np.isnan(taus)]
    if not taus.size:
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(taus, [0.025, 0.975])
    return Interval(float(taus.mean()), float(low), float(high))


def pairs(aligned: Aligned, *, resamples: int = 1000, permutations: int = 10_000, seed: int = 0) -> list[dict]:
    """One line per pair of runs: difference with interval, p by permutation of patients, Holm, sizes of the effect.

    A difference above 0 means that `first` has the higher value; `superiority` is above 0.5 where `first` is the
    better one for more patients.
    """
    lines = []
    for one, other in combinations(range(len(aligned.names)), 2):
        difference = aligned.values[one] - aligned.values[other]
        sizes = effect_sizes(difference if aligned.better == "higher" else -difference, aligned.groups)
        lines.append(
            {
                "first": aligned.names[one],
                "second": aligned.names[other],
                "difference": paired_difference(
                    aligned.values[one], aligned.values[other], groups=aligned.groups, resamples=resamples, seed=seed
                ),
                "p": sign_flip_test(difference, aligned.groups, resamples=permutations, seed=seed),
                **sizes,
            }
        )
    for line, corrected in zip(lines, holm([line["p"] for line in lines]), strict=True):
        line["p_holm"] = corrected
    return lines


def strata_of(aligned: Aligned) -> dict[str, list[str]]:
    """Stratum -> its value per case, for those of `STRATA` in which cases differ.

    `size` parts the true masks into thirds by `truth_voxels`.
    """
    found = {}
    for name in STRATA[:-1]:
        values = [str(case.get(name) or "") for case in aligned.cases]
        if 1 < len(set(values)) <= 50:
            found[name] = values
    sizes = np.array([float(case.get("truth_voxels") or 0) for case in aligned.cases])
    if np.count_nonzero(sizes) >= 3 and len(set(sizes)) > 2:
        ends = np.quantile(sizes[sizes > 0], [1 / 3, 2 / 3])
        found["size"] = [SIZES[int(np.searchsorted(ends, size))] if size else "" for size in sizes]
    return found


def by_stratum(aligned: Aligned, *, resamples: int = 500, seed: int = 0) -> list[dict]:
    """One line per stratum and value: cases, patients, and the mean of every run with its interval."""
    lines = []
    for stratum, values in strata_of(aligned).items():
        order = SIZES if stratum == "size" else sorted(set(values) - {""})
        for value in order:
            chosen = np.array([one == value for one in values])
            if not chosen.any():
                continue
            groups = [group for group, kept in zip(aligned.groups, chosen, strict=True) if kept]
            line = {"stratum": stratum, "value": value, "cases": len(groups), "patients": len(set(groups))}
            for name, numbers in zip(aligned.names, aligned.values, strict=True):
                line[name] = bootstrap_mean(numbers[chosen], groups=groups, resamples=resamples, seed=seed)
            lines.append(line)
    return lines


def worst_cases(rows: Sequence[Mapping], metric: str, most: int = 12) -> list[Mapping]:
    """The rows in which `metric` is worst, one per case, the worst first; rows without the metric are left out.

    Ties are broken by the size of the true mask (a large thing that was missed comes first), then by name.
    """
    sign = 1 if direction(metric) == "higher" else -1
    known = [row for row in map(renamed, rows) if row.get(metric) is not None and not np.isnan(float(row[metric]))]
    known.sort(key=lambda row: (sign * float(row[metric]), -float(row.get("truth_voxels") or 0), str(row.get("case"))))
    chosen: dict[str, Mapping] = {}
    for row in known:
        chosen.setdefault(str(row.get("case")), row)
        if len(chosen) == most:
            break
    return list(chosen.values())
