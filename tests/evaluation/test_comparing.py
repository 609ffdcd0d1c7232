"""Runs on the same cases: alignment, ranks, pairs, strata, worst cases, pages and the verb."""

import json

import numpy as np
import pytest

from unimed.commands.compare_runs import compare_runs
from unimed.evaluation.cases import case_row
from unimed.evaluation.comparing import (
    ComparisonError,
    align,
    by_stratum,
    direction,
    pairs,
    ranking,
    stability,
    worst_cases,
)
from unimed.evaluation.pages import forest, page, run_page, table
from unimed.evaluation.tables import write_cases
from unimed.metrics.statistics import Interval


def run(offset, *, patients=12, cases=3, seed=0, metric="dice", **changes):
    """Rows whose mean is about 0.5 + offset; the same patients and cases for every seed."""
    noise, rows = np.random.default_rng(seed), []
    level = np.random.default_rng(99).uniform(-0.15, 0.15, patients)
    for patient in range(patients):
        for case in range(cases):
            value = float(np.clip(0.5 + offset + level[patient] + noise.normal(0, 0.02), 0, 1))
            row = case_row(
                f"p{patient}c{case}", "mask", patient=f"P{patient}", task="referring",
                modality="CT" if patient % 2 else "MR", target="liver", truth_voxels=10 ** (case + 1),
                **{metric: value},
            )  # fmt: skip
            rows.append(row | changes)
    return rows


def test_the_better_run_is_first_and_the_test_says_so():
    aligned = align({"bad": run(-0.1), "good": run(0.2, seed=1), "same": run(0.2, seed=1)}, "dice", kind="mask")
    lines = ranking(aligned, resamples=200)
    assert [line["run"] for line in lines] == ["good", "same", "bad"]
    assert lines[0]["rank"] == lines[1]["rank"] == 1.5 and lines[0]["rank_first"] == pytest.approx(0.5)
    assert lines[2]["rank_95"] == "3 to 3" and lines[0]["patients"] == 12
    found = {(p["first"], p["second"]): p for p in pairs(aligned, resamples=200)}
    worse = found["bad", "good"]
    assert worse["difference"].high < 0 and worse["p"] < 0.01 and worse["superiority"] == 0 and worse["cohen_dz"] < -2
    assert worse["p_holm"] >= worse["p"]
    equal = found["good", "same"]
    assert equal["difference"].value == 0 and equal["p"] == 1 and equal["superiority"] == 0.5
    assert stability(aligned, resamples=100).value == pytest.approx(1)


def test_lower_is_better_where_the_metric_says_so():
    assert (
        direction("dice") == "higher"
        and direction("hausdorff_95_mm") == "lower"
        and direction("false_mask_rate") == "lower"
    )
    aligned = align(
        {"near": run(-0.2, metric="hausdorff_95_mm"), "far": run(0.2, metric="hausdorff_95_mm")}, "hausdorff_95_mm"
    )
    assert [line["run"] for line in ranking(aligned, resamples=50)] == ["near", "far"]
    (pair,) = pairs(aligned, resamples=50)
    assert pair["difference"].value < 0 and pair["superiority"] == 1 and pair["cohen_dz"] > 0


def test_cases_are_the_same_or_it_is_said():
    whole, part = run(0), run(0.1, seed=1)[:-2]
    with pytest.raises(ComparisonError, match="part misses 2"):
        align({"whole": whole, "part": part}, "dice")
    aligned = align({"whole": whole, "part": part}, "dice", common=True)
    assert len(aligned.groups) == len(part) and aligned.left_out == {"whole": 0, "part": 2}
    with pytest.raises(ComparisonError, match="no row with a value of 'dics'"):
        align({"whole": whole}, "dics")
    with pytest.raises(ComparisonError, match="another patient"):
        align({"whole": whole, "other": [row | {"group": "x"} for row in part]}, "dice")
    with pytest.raises(ComparisonError, match="no run"):
        align({}, "dice")


def test_order_of_rows_and_superfluous_rows():
    rows = run(0)
    extra = [rows[0] | {"dice": 0.0, "superfluous": True}]
    one = align({"a": rows, "b": list(reversed(run(0, seed=3))) + extra}, "dice")
    other = align({"a": rows, "b": extra + run(0, seed=3)}, "dice")
    assert np.array_equal(one.values, other.values)
    assert one.values[1][0] == pytest.approx(run(0, seed=3)[0]["dice"] / 2)


def test_strata_by_modality_and_size():
    lines = by_stratum(align({"a": run(0), "b": run(0.1)}, "dice"), resamples=50)
    sizes = [line["value"] for line in lines if line["stratum"] == "size"]
    assert {line["stratum"] for line in lines} == {"modality", "size"} and sizes == ["small", "medium", "large"]
    assert sum(line["cases"] for line in lines if line["stratum"] == "modality") == 36
    assert all(line["b"].value > line["a"].value for line in lines)


def test_worst_cases_come_first_once_each():
    rows = run(0)
    worst = worst_cases(rows, "dice", 5)
    assert [row["dice"] for row in worst] == sorted(row["dice"] for row in rows)[:5]
    assert len({row["case"] for row in worst_cases(rows + rows, "dice", 50)}) == len(rows)
    assert worst_cases(run(0, metric="hausdorff_95_mm"), "hausdorff_95_mm", 1)[0]["hausdorff_95_mm"] == max(
        r["hausdorff_95_mm"] for r in run(0, metric="hausdorff_95_mm")
    )


def test_pages_escape_and_hold_everything():
    evil = "<script>alert(1)</script>"
    html = run_page(
        evil, [{"kind": "mask", "task": evil, "metric": "dice", "mean": Interval(0.5, 0.4, 0.6)}],
        manifest={"model": {"hash": evil}}, worst=[(b"\x89PNG", evil)], further={evil: [{"a": evil}]}, command=evil,
    )  # fmt: skip
    assert evil not in html and "&lt;script&gt;" in html and "data:image/png;base64," in html
    assert "esearch use" in html and "http" not in html.replace("http-equiv", "").replace("xmlns", "")
    assert forest([("a", Interval(float("nan"), 0, 0))]) == "" and "<svg" in forest([("a", Interval(1, 1, 1))])
    assert table([]) and page("x")


def test_the_verb_writes_page_and_tables(tmp_path, capsys):
    for name, offset in (("a", 0.0), ("b", 0.2)):
        write_cases(tmp_path / name / "cases.jsonl", run(offset))
    arguments = [str(tmp_path / "a"), f"ours={tmp_path / 'b'}", "--metric", "dice", "--resamples", "100"]
    assert compare_runs([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "ours" in said and "Kendall" in said and "Research use only" in said
    html = (tmp_path / "out" / "comparison.html").read_text()
    assert "ours" in html and "<svg" in html
    lines = [json.loads(line) for line in (tmp_path / "out" / "comparison.jsonl").read_text().splitlines()]
    assert {line["table"] for line in lines} == {"Ranking", "Pairs", "By stratum"}
    assert compare_runs([str(tmp_path / "a"), str(tmp_path / "none"), "--metric", "dice"]) == 1
    assert compare_runs([str(tmp_path / "a"), "--metric", "nothing"]) == 1
    assert "Traceback" not in capsys.readouterr().err
