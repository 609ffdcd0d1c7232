"""A run over many cases goes on where it stopped, and names what broke."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from unimed.inference.runs import FolderError, run_cases
from unimed.locks import FolderInUseError, FolderLock
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


@pytest.mark.parametrize("other", ["CASE-0", "case-0"])
def test_names_that_one_file_system_takes_for_one_must_differ(tmp_path, other):
    with pytest.raises(FolderError, match="same name"):
        run(tmp_path, cases=[CASES[0], Case(other, {"value": 3})])


def images(folder, *contents):
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        (folder / f"{number}.png").write_text(content)
    return [Case(str(number), {"path": folder / f"{number}.png", "text": "?"}) for number in range(len(contents))]


def read(batch):
    return [{"answer": case.inputs["path"].read_text()} for case in batch]


def test_a_replaced_image_is_asked_again(tmp_path):
    cases = images(tmp_path / "in", "one", "two", "three")
    run(tmp_path / "out", read, cases)
    status = (tmp_path / "in" / "1.png").stat()
    (tmp_path / "in" / "1.png").write_text("TWO")
    os.utime(tmp_path / "in" / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    report = run(tmp_path / "out", read, cases)
    assert [row["answer"] for row in report.rows] == ["one", "TWO", "three"] and report.skipped == 2
    lines = (tmp_path / "out" / "cases.jsonl").read_text().strip().split("\n")
    assert sorted(json.loads(line)["answer"] for line in lines) == ["TWO", "one", "three"]


def test_a_replaced_image_that_is_broken_has_no_old_answer(tmp_path):
    cases = images(tmp_path / "in", "one", "two")
    run(tmp_path / "out", read, cases)
    (tmp_path / "in" / "1.png").write_bytes(b"\xff\xfe\xff")
    report = run(tmp_path / "out", read, cases)
    assert [row["answer"] for row in report.rows] == ["one"] and set(report.failed) == {"1"}
    assert "two" not in (tmp_path / "out" / "cases.jsonl").read_text()


def test_another_question_is_asked_again(tmp_path):
    cases = images(tmp_path / "in", "one", "two")
    run(tmp_path / "out", read, cases)
    assert run(tmp_path / "out", read, [cases[0], Case("1", cases[1].inputs | {"text": "!"})]).skipped == 1


def test_moved_images_keep_their_answers(tmp_path):
    cases = images(tmp_path / "in", "one", "two")
    run(tmp_path / "out", read, cases)
    shutil.copytree(tmp_path / "in", tmp_path / "copy")
    moved = [Case(case.name, case.inputs | {"path": tmp_path / "copy" / f"{case.name}.png"}) for case in cases]
    assert run(tmp_path / "out", read, moved).skipped == 2


def test_an_image_that_changes_meanwhile_has_no_answer(tmp_path):
    cases = images(tmp_path / "in", "one")

    def slow(batch):
        rows = read(batch)
        (tmp_path / "in" / "0.png").write_text("other")
        return rows

    report = run(tmp_path / "out", slow, cases)
    assert "changed while" in report.failed["0"] and not report.rows


def test_a_replaced_model_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("weights A")
    settings = {"model": str(tmp_path / "model")}
    run(tmp_path / "out", settings=settings)
    assert run(tmp_path / "out", settings=settings).skipped == 7
    status = (tmp_path / "model" / "model.safetensors").stat()
    (tmp_path / "model" / "model.safetensors").write_text("weights B")
    os.utime(tmp_path / "model" / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(FolderError, match="was replaced since.*choose another folder or restart"):
        run(tmp_path / "out", settings=settings)
    assert run(tmp_path / "out", settings=settings, restart=True).skipped == 0


def test_two_runs_at_once(tmp_path):
    with FolderLock(tmp_path, "a run"), pytest.raises(FolderInUseError, match="a run by process"):
        run(tmp_path)
    assert len(run(tmp_path).rows) == 7
    assert not (tmp_path / ".lock").exists()


KILLED = """
import os, signal, sys
from unimed.inference.runs import run_cases
from unimed.structures import Case
def predict(batch):
    if batch[0].inputs["value"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return [{"square": case.inputs["value"] ** 2} for case in batch]
run_cases([Case(f"case-{i}", {"value": i}) for i in range(7)], predict, sys.argv[1], settings={"model": "m"})
"""


def test_a_killed_run_is_taken_over_with_every_row(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, capture_output=True)
    report = run(tmp_path)
    assert report.skipped == 4 and [row["square"] for row in report.rows] == [i * i for i in range(7)]
