"""A run is frozen, repeated, scored again; trivial contestants rank as they should; failures and mix-ups are named."""

import json
import re

import numpy as np
import pytest
from evaluation.harness import drawn

from unimed.commands.cli import main
from unimed.data.readers.records import RecordDataset
from unimed.evaluation.contestants.base import asked
from unimed.evaluation.harness.frozen import FrozenError, frozen, read_lines, thawed
from unimed.evaluation.harness.manifest import ManifestError
from unimed.evaluation.harness.plan import Plan, execute, repeat, rescore
from unimed.evaluation.harness.running import RunError
from unimed.evaluation.tables import read_cases
from unimed.io.result import Prediction
from unimed.structures import Region


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return drawn.write(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def right(data, tmp_path_factory):
    return drawn.perfect(RecordDataset(data, split="test"), tmp_path_factory.mktemp("right") / "right.jsonl")


def plan(data, contestant, **changes):
    return Plan("unimed/any", contestant, data=str(data), **{"resamples": 20, "worst": 2, **changes})


def test_the_command_writes_a_run_repeats_it_and_scores_it_again(data, right, tmp_path, capsys):
    run = tmp_path / "run"
    words = [
        "benchmark",
        "unimed/any",
        f"predictions:{right}",
        "--data",
        str(data),
        "--resamples",
        "20",
        "--worst",
        "2",
    ]
    assert main([*words, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "Answers that look at no image" in said and "Leaks" in said and "Research use only" in said
    assert {"manifest.json", "predictions.jsonl", "cases.jsonl", "scores.md", "scores.json", "run.html"} <= {
        path.name for path in run.iterdir()
    }
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["headline"]["metric"] == "dice" and manifest["headline"]["mean"]["value"] == 1
    assert manifest["numbers"]["answer/vqa/exact_match"] == 1 and manifest["failed"] == 0
    assert {"unimed", "source", "torch", "transformers"} <= set(manifest["code"])
    assert all(len(manifest[part]["content" if part == "data" else "identity"]) for part in ("data", "contestant"))
    page = (run / "run.html").read_text()
    assert page.count("<img") == 2 and "script" not in page and not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "patient-" not in page + said + json.dumps(manifest), "patients stay behind"

    assert main(["benchmark", "--from", str(run / "manifest.json"), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.count("| yes") == 5
    before = (run / "cases.jsonl").read_bytes()
    right.rename(right.with_suffix(".away"))  # scoring again needs no model
    try:
        assert main(["benchmark", "--rescore", str(run)]) == 0
    finally:
        right.with_suffix(".away").rename(right)
    assert (run / "cases.jsonl").read_bytes() == before
    with pytest.raises(RunError, match="holds a run"):
        execute(plan(data, "no:"), run)


def test_a_repeated_run_that_differs_says_where(data, right, tmp_path, capsys):
    file = tmp_path / "answers.jsonl"
    file.write_text(right.read_text())
    execute(plan(data, f"predictions:{file}"), tmp_path / "run")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["regions"] = []
    file.write_text("\n".join(map(json.dumps, lines)))
    found, _ = repeat(tmp_path / "run", tmp_path / "again")
    verdict = {line["what"]: line for line in found}
    assert [name for name, line in verdict.items() if not line["equal"]] == ["contestant", "predictions", "numbers"]
    assert verdict["predictions"]["detail"] == f"{len(lines) - 1} of {len(lines)} equal"
    assert main(["benchmark", "--from", str(tmp_path / "run"), "--out", str(tmp_path / "third")]) == 2
    with pytest.raises(ValueError, match="is the run that is repeated"):
        repeat(tmp_path / "run", tmp_path / "run")


def test_trivial_contestants_rank_as_they_should(data, right, tmp_path, capsys):
    runs = {"right": f"predictions:{right}", "prior": "prior:", "everything": "everything:", "no": "no:"}
    for name, word in runs.items():
        execute(plan(data, word, baselines=False, worst=0), tmp_path / name)
    numbers = {name: json.loads((tmp_path / name / "scores.json").read_text())["numbers"] for name in runs}
    dice = {name: one["mask/referring/dice"] for name, one in numbers.items()}
    assert dice["right"] == 1 > dice["prior"] > dice["everything"] > dice["no"] == 0
    boxes = {name: one["box/box/miou"] for name, one in numbers.items()}
    assert boxes["right"] == 1 > boxes["prior"] > boxes["everything"] > boxes["no"] == 0
    # What is not there: who marks all is always wrong, and who says no is right for nothing.
    assert (
        numbers["everything"]["presence/absent/false_mask_rate"] == 1 > numbers["no"]["presence/absent/false_mask_rate"]
    )
    assert numbers["no"]["presence/referring/missed_mask_rate"] == 1
    words = {name: one["answer/vqa/exact_match"] for name, one in numbers.items()}
    assert words["right"] == 1 > words["prior"] > max(words["everything"], words["no"])
    folders = [f"{name}={tmp_path / name}" for name in runs]
    assert main(["compare-runs", *folders, "--resamples", "5"]) == 0  # by the headline of their benchmark
    assert "dice of 6 cases of 6 patients" in capsys.readouterr().out
    assert main(["compare-runs", *folders, "--metric", "dice", "--kind", "mask", "--resamples", "50",
                 "--out", str(tmp_path / "board")]) == 0  # fmt: skip
    ranked = re.findall(r"^\| (right|prior|everything|no) +\| (\d)", capsys.readouterr().out, flags=re.MULTILINE)
    assert ranked == [("right", "1"), ("prior", "2"), ("everything", "3"), ("no", "4")]
    assert (tmp_path / "board" / "comparison.html").is_file()


def test_answers_never_reach_a_contestant(data):
    for sample in RecordDataset(data, split="test"):
        shown = asked(sample)
        assert shown.patient_id == "" and set(shown.labels) <= {"task", "choices", "site"}
        assert shown.conversation[0] == sample.conversation[0] and shown.conversation[1] == ("assistant", "")
        assert all(r.mask is None and r.box_xyxy_px is None and r.presence is None for r in shown.regions)


def test_a_case_that_raises_is_named_and_counts_as_empty(data, right, tmp_path, capsys):
    lines = right.read_text().splitlines()
    (tmp_path / "some.jsonl").write_text("\n".join(lines[1:]))
    words = ["benchmark", "unimed/any", f"predictions:{tmp_path / 'some.jsonl'}", "--data", str(data), "--limit", "10"]
    assert main([*words, "--out", str(tmp_path / "run"), "--resamples", "20", "--no-baselines"]) == 2
    (failed,) = [json.loads(line) for line in (tmp_path / "run" / "failed.jsonl").read_text().splitlines()]
    assert failed["case"] == "test0-mask" and "holds no case" in failed["error"]
    row = next(row for row in read_cases(tmp_path / "run" / "cases.jsonl") if row["case"] == "test0-mask")
    assert row["dice"] == 0 and not row["answered"]


def test_failed_cases_stay_failed_when_scored_again(data, right, tmp_path, capsys):
    (tmp_path / "some.jsonl").write_text("\n".join(right.read_text().splitlines()[1:]))
    run, quick = tmp_path / "run", ["--resamples", "5", "--worst", "0", "--no-baselines", "--no-leak-check"]
    quick += ["--data", str(data), "--out", str(run)]
    assert main(["benchmark", "unimed/any", f"predictions:{tmp_path / 'some.jsonl'}", *quick]) == 2
    capsys.readouterr()
    assert main(["benchmark", "--rescore", str(run)]) == 2
    assert "holds no case" in capsys.readouterr().out and json.loads((run / "manifest.json").read_text())["failed"] == 1
    assert main(["benchmark", "unimed/any", f"predictions:{right}", *quick, "--restart"]) == 0
    assert not (run / "failed.jsonl").exists(), "those were of the run before"


def test_what_is_amiss_is_told_before_the_first_question(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        execute(plan(data, "no:", against=str(tmp_path / "nowhere")), tmp_path / "run")
    with pytest.raises(ValueError, match="--judge-url"):
        execute(plan(data, "no:", judge="some"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scoring_again_tells_that_the_data_have_changed(tmp_path):
    data = drawn.write(tmp_path / "data")
    execute(plan(data, "no:", baselines=False, leak_check=False, worst=0, limit=2), tmp_path / "run")
    records = data / "records" / "test.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    lines[0]["question"] += " Please."
    records.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.warns(UserWarning, match="data have changed"):
        rescore(tmp_path / "run")


def test_a_repetition_overwrites_no_other_run(data, tmp_path):
    quick = {"baselines": False, "leak_check": False, "worst": 0}
    for word in ("no", "everything"):
        execute(plan(data, f"{word}:", **quick), tmp_path / word)
    before = (tmp_path / "no" / "manifest.json").read_bytes()
    with pytest.raises(ManifestError, match="another run"):
        repeat(tmp_path / "everything", tmp_path / "no")
    assert (tmp_path / "no" / "manifest.json").read_bytes() == before
    for _ in range(2):  # a repetition of the same run is renewed
        assert all(line["equal"] for line in repeat(tmp_path / "no")[0])


def test_nothing_is_scored_where_every_case_failed(data, tmp_path, capsys):
    (tmp_path / "none.jsonl").write_text('{"case": "other"}')
    words = ["benchmark", "unimed/any", f"predictions:{tmp_path / 'none.jsonl'}", "--data", str(data)]
    assert main([*words, "--out", str(tmp_path / "run")]) == 1
    assert "every case failed" in capsys.readouterr().err and not (tmp_path / "run" / "cases.jsonl").exists()


def test_an_unfinished_run_goes_on(data, tmp_path, monkeypatch):
    from unimed.evaluation.contestants import trivial

    asked_of, answer = [], trivial.AlwaysNo.answer

    def counted(self, samples):
        asked_of.extend(sample.sample_id for sample in samples)
        if len(asked_of) > 8:
            raise KeyboardInterrupt
        return answer(self, samples)

    monkeypatch.setattr(trivial.AlwaysNo, "answer", counted)
    with pytest.raises(KeyboardInterrupt):
        execute(plan(data, "no:", baselines=False), tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()
    first, asked_of[:] = asked_of[:8], []
    monkeypatch.setattr(trivial.AlwaysNo, "answer", lambda self, samples: (
        asked_of.extend(s.sample_id for s in samples), answer(self, samples))[1])  # fmt: skip
    with pytest.raises(RunError, match="other settings"):
        execute(plan(data, "everything:"), tmp_path / "run")
    execute(plan(data, "no:", baselines=False), tmp_path / "run")
    assert not set(first) & set(asked_of) and len(asked_of) == 30 - len(first)


def test_predictions_come_back_as_they_were_and_mistakes_are_named(tmp_path):
    rng = np.random.default_rng(0)
    regions = (
        Region("a", mask=rng.random((9, 7)) > 0.5, presence=0.5), Region("b", mask=rng.random((3, 9, 7)) > 0.5),
        Region("c", box_xyxy_px=(1.0, 2.0, 3.5, 4.0), confidence=0.25),
    )  # fmt: skip
    back = thawed(json.loads(json.dumps(frozen("x", Prediction("words", regions)))))
    assert back.text == "words" and [r.phrase for r in back.regions] == ["a", "b", "c"]
    assert all((one.mask == two.mask).all() for one, two in zip(back.regions[:2], regions[:2], strict=True))
    assert back.regions[2].box_xyxy_px == regions[2].box_xyxy_px and back.regions[2].confidence == 0.25
    huge = {"case": "x", "regions": [{"phrase": "a", "mask_rle": {"size": [9, 10**9], "counts": [9 * 10**9]}}]}
    with pytest.raises(FrozenError, match="the image .9, 7."):
        thawed(huge, grid=(9, 7))
    with pytest.raises(FrozenError, match="no field 'bbox'"):
        thawed({"regions": [{"bbox": [1, 2, 3, 4]}]})
    (tmp_path / "a.jsonl").write_text('{"case": "x"}\n{"case": "x"}\n')
    with pytest.raises(FrozenError, match="a.jsonl:2: case 'x' stands there twice"):
        read_lines(tmp_path / "a.jsonl")
