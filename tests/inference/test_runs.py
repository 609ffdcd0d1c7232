"""A run over many cases goes on where it stopped, and names what broke."""

import json

import pytest

from unimed.inference.runs import FolderError, run_cases
from unimed.structures import Case

CASES = [Case(f"case-{i}", {"value": i}) for i in range(7)]


def squares(batch):
    return [{"square": case.inputs["value"] ** 2} for case in batch]


def run(folder, predict=squares, cases=CASES, **options):
    return run_cases(cases, predict, folder, settings=options.pop("settings", {"model": "m"}), **options)


def test_every_case_in_order_whatever_the_batch(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b", batch_size=3)
    assert first.rows == second.rows and [row["square"] for row in first.rows] == [i * i for i in range(7)]
    assert first.exit_code == 0


def test_a_broken_case_costs_only_itself_and_is_tried_again(tmp_path):
    def fragile(batch):
        if any(case.inputs["value"] == 4 for case in batch):
            raise OSError("truncated file")
        return squares(batch)

    report = run(tmp_path, fragile, batch_size=3)
    assert report.failed == {"case-4": "OSError: truncated file"} and report.exit_code == 2
    assert len(report.rows) == 6
    assert json.loads((tmp_path / "failed.jsonl").read_text())["case"] == "case-4"
    again = run(tmp_path)
    assert again.skipped == 6 and again.exit_code == 0 and len(again.rows) == 7
    assert (tmp_path / "failed.jsonl").read_text() == ""


def test_interrupted_run_goes_on_after_a_torn_line(tmp_path):
    def interrupted(batch):
        if batch[0].name == "case-3":
            raise KeyboardInterrupt
        return squares(batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupted)
    with open(tmp_path / "cases.jsonl", "a") as stream:
        stream.write('{"case": "case-3", "squ')
    asked = []
    report = run(tmp_path, lambda batch: asked.extend(c.name for c in batch) or squares(batch))
    assert asked == ["case-3", "case-4", "case-5", "case-6"] and report.skipped == 3
    assert [json.loads(line)["case"] for line in (tmp_path / "cases.jsonl").read_text().splitlines()] == [
        case.name for case in CASES
    ]


def test_results_of_other_settings_never_mix(tmp_path):
    run(tmp_path)
    with pytest.raises(FolderError, match="model: 'm' -> 'n'"):
        run(tmp_path, settings={"model": "n"})
    assert run(tmp_path, settings={"model": "n"}, restart=True).skipped == 0


def test_names_must_differ(tmp_path):
    with pytest.raises(FolderError, match=r"same name.*'case-0' \(0, 0\); rename"):
        run(tmp_path, cases=[CASES[0], CASES[0]])


def test_a_predictor_that_loses_a_row_is_a_fault_of_the_program(tmp_path):
    with pytest.raises(RuntimeError, match="2 rows for 3 cases"):
        run(tmp_path, lambda batch: squares(batch)[:2], batch_size=3)
