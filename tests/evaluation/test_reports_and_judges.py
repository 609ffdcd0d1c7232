"""Findings by rules, statements by a judge, places by us; judgements are kept, and judges compared."""

import json

import numpy as np
import pytest
from evaluation.harness import drawn
from evaluation.harness.test_contestants import stub

from unimed.commands.cli import main
from unimed.evaluation.judges import (
    CURRENT,
    ERRORS,
    PROMPTS,
    EndpointJudge,
    ErrorCounts,
    JudgeError,
    Judgement,
    RecordedJudge,
    agreement,
    read_errors,
    read_judgement,
)
from unimed.evaluation.scorers.green import green
from unimed.evaluation.scorers.radfact import one_way, radfact_rows, statements
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.metrics.report_labels import label_scores, report_labels
from unimed.structures import Region, Sample


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The heart is enlarged. No pleural effusion or pneumothorax.",
         {"cardiomegaly": "present", "pleural effusion": "absent", "pneumothorax": "absent"}),
        ("No focal consolidation, but there is a small left effusion.",
         {"consolidation": "absent", "pleural effusion": "present"}),
        ("Possible pneumonia. Edema cannot be excluded.", {"pneumonia": "uncertain", "edema": "uncertain"}),
        ("Opacity at the base may represent atelectasis or infection.",
         {"lung opacity": "present", "atelectasis": "uncertain", "pneumonia": "uncertain"}),
        ("The pneumothorax has resolved.", {"pneumothorax": "absent"}),
        ("No acute process. Right PICC in place.", {"support devices": "present", "no finding": "present"}),
        ("Lungs are clear without nodules. There is a nodule on the lateral view.", {"lung lesion": "present"}),
        ("Normal chest.", {"no finding": "present"}), ("", {"no finding": ""}),
        ("Massive ascites.", {"lung lesion": ""}),
    ],
)  # fmt: skip
def test_findings_that_a_report_states(text, expected):
    found = report_labels(text)
    assert {name: found[name] for name in expected} == expected and len(found) == 14


def test_f1_of_findings():
    truth = ["Cardiomegaly. Small effusion.", "No effusion. Normal.", "Pneumothorax."]
    assert set(label_scores(truth, truth).values()) == {1.0}
    found = label_scores(["Cardiomegaly.", "Effusion.", "Pneumothorax."], truth)
    # cardiomegaly 1 of 1, pneumothorax 1 of 1, effusion one missed and one too many, "no finding" missed
    assert found["rule_label_f1_micro_14"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["rule_label_f1_macro_14"] == pytest.approx(np.mean([1, 1, 0, 0]))
    assert found["rule_label_f1_macro_5"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="1 reports cannot be compared with 3"):
        label_scores(["x"], truth)


class Words:
    """Entails what is said word for word."""

    name, prompt = "words", CURRENT

    def judge(self, phrase, report):
        places = tuple(n for n, one in enumerate(report) if one.lower() == phrase.lower())
        return Judgement(bool(places), places)


def box(x1, y1, x2, y2, phrase):
    return Region(phrase, box_xyxy_px=(x1, y1, x2, y2))


def test_the_six_numbers_of_grounded_reports():
    found = [box(0, 0, 10, 10, "nodule"), box(20, 0, 30, 10, "effusion")]
    true = statements("A nodule. An effusion. The heart is normal.", found, (40, 40))
    assert [place is not None for _, place in true] == [True, True, False]
    same = one_way(true, true, Words())
    assert same == {"logical": 1, "grounding": 1, "spatial": 1}
    # one statement true and in its place, one true in another place, one false with a place
    found = [box(0, 0, 10, 12, "nodule"), box(0, 20, 10, 30, "effusion"), box(5, 5, 9, 9, "mass")]
    said = statements("A nodule. An effusion. A mass.", found, (40, 40))
    assert one_way(said, true, Words()) == {"logical": 2 / 3, "grounding": 1 / 2, "spatial": 1 / 3}
    half = statements("A nodule.", [box(0, 0, 10, 21, "nodule")], (40, 40))
    assert one_way(half, true, Words())["grounding"] == 0 and np.isnan(one_way([], true, Words())["logical"])
    mask = np.zeros((3, 40, 40), bool)
    mask[1, 2:5, 2:5] = True
    ((_, place),) = statements("", [Region("nodule", mask=mask)], (3, 40, 40))
    assert (place == mask).all(), "what is pointed at without a sentence is a statement"
    sample = Sample((np.zeros((40, 40), np.uint8),), Geometry.pixels(), "s", labels={"task": "report"},
                    conversation=(("user", "?"), ("assistant", "A nodule.")),
                    regions=(box(0, 0, 10, 10, "nodule"),))  # fmt: skip
    (row,) = radfact_rows([sample], [Prediction("A nodule.", sample.regions)], Words())
    assert row["radfact_spatial_recall"] == 1 and row["statements_true"] == 1 and row["kind"] == "text"


def answering(messages):
    """A judge that reasons aloud, and entails what shares its last word."""
    asked = messages[1]["content"]
    if asked.startswith("Reference report:"):
        reference, candidate = asked.removeprefix("Reference report:\n").split("\n\nCandidate report:\n")
        wrong = int(reference.strip() != candidate.strip())
        counts = {"matched": 1, "significant": {"false_finding": wrong, "typo": 3}, "insignificant": {}}
        return {"content": f"Counted. {json.dumps(counts)}"}
    statement = asked.rsplit("Statement: ", 1)[1]
    lines = [line.split(". ", 1) for line in asked.splitlines() if line[:1].isdigit()]
    evidence = [int(number) for number, text in lines if text.split()[-1] == statement.split()[-1]]
    return {"content": f"I compare.\n{json.dumps({'entailed': bool(evidence), 'evidence': evidence + [99]})}"}


def test_judgements_are_asked_for_once_kept_and_played_back(tmp_path):
    pytest.importorskip("openai")
    record = tmp_path / "judgements.jsonl"
    with stub(answering) as (url, seen):
        judge = EndpointJudge("small", url, record=record)
        first = judge.judge("a large effusion", ["no nodule", "an effusion"])
        assert first == Judgement(True, (1,)) and judge.judge("a large effusion", ["no nodule", "an effusion"]) == first
        assert not judge.judge("a mass", ["no nodule"]).entailed and len(seen) == 2
    assert seen[0][1]["messages"][0]["content"] == PROMPTS[CURRENT] and seen[0][1]["temperature"] == 0
    recorded = RecordedJudge(record)
    assert recorded.judge("a large effusion", ["no nodule", "an effusion"]) == first and "small" in recorded.name
    with pytest.raises(JudgeError, match="no judgement of 'a cyst'"):
        recorded.judge("a cyst", [])
    with pytest.raises(JudgeError, match="needs a model and an address"):
        EndpointJudge("", "")


def test_answers_of_judges_are_read_strictly():
    assert read_judgement('Sure: {"entailed": true, "evidence": [1, 7, "2"]}', 2) == Judgement(True, (0,))
    assert read_judgement('{"entailed": false, "evidence": [1]}', 2) == Judgement(False)
    for text in ("yes", '{"entailed": "yes"}', "{}", '{"entailed": true'):
        assert read_judgement(text, 2) == Judgement(False, readable=False)


def test_error_counts_are_read_strictly():
    significant, minor = {"wrong_place": 1, "typo": 4, "missing_finding": 0}, {"wrong_severity": 2}
    text = json.dumps({"matched": 2, "significant": significant, "insignificant": minor})
    counts = read_errors(f"So {{it}} is: {text}")
    assert counts == ErrorCounts(2, {"wrong_place": 1}, {"wrong_severity": 2}) and green(counts) == pytest.approx(2 / 3)
    assert green(ErrorCounts(0, {"false_finding": 1})) == 0 and green(ErrorCounts(3)) == 1
    for text in ("none", '{"matched": "two"}', '{"matched": -1}', '{"matched": true}', '{"matched": 1'):
        assert not read_errors(text).readable and np.isnan(green(read_errors(text)))
    assert read_errors('{"matched": 1, "significant": 3}') == ErrorCounts(1)


def test_errors_are_counted_once_kept_and_played_back(tmp_path):
    pytest.importorskip("openai")
    record = tmp_path / "judgements.jsonl"
    with stub(answering) as (url, seen):
        judge = EndpointJudge("small", url, record=record)
        found = judge.count_errors("a mass", "a cyst")
        assert found == ErrorCounts(1, {"false_finding": 1}) == judge.count_errors("a mass", "a cyst")
        assert judge.judge("a mass", ["the mass"]).entailed and len(seen) == 2
    recorded = RecordedJudge(record)
    assert recorded.count_errors("a mass", "a cyst") == found and recorded.judge("a mass", ["the mass"]).entailed
    with pytest.raises(JudgeError, match="errors/1"):
        recorded.count_errors("a cyst", "a mass")


def test_agreement_of_judges():
    assert agreement([True, False, True, False], [True, False, False, False]) == {"agreement": 0.75, "kappa": 0.5}
    assert agreement([True, True], [True, False])["kappa"] == 0
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement([], [])


def test_a_run_with_a_judge_is_scored_again_without_it(tmp_path, capsys):
    pytest.importorskip("openai")
    from unimed.data.readers.records import RecordDataset

    data = drawn.write(tmp_path / "data", patients=1, test_patients=2)
    rows = [json.loads(line) for line in (data / "records/test.jsonl").read_text().splitlines()]
    reports = [{**row, "id": f"r{n}", "task": "report", "answer": "A <p> lesion </p> [SEG]."}
               for n, row in enumerate(rows) if row["task"] == "referring"]  # fmt: skip
    (data / "records/test.jsonl").write_text("\n".join(map(json.dumps, reports)))
    right = drawn.perfect(RecordDataset(data, split="test"), tmp_path / "right.jsonl")
    words = ["benchmark", "unimed/any", f"predictions:{right}", "--data", str(data), "--resamples", "5", "--worst", "0"]
    with stub(answering) as (url, seen):
        assert main([*words, "--out", str(tmp_path / "run"), "--judge", "small", "--judge-url", url]) == 0
        asked = len(seen)
    said = capsys.readouterr().out
    assert "radfact_spatial_precision" in said and "small" in said and CURRENT in said and asked > 0
    assert main(["benchmark", "--rescore", str(tmp_path / "run")]) == 0  # the judge is gone
    again = capsys.readouterr().out
    assert "radfact_logical_recall" in again and "green" in again and ERRORS in again
    errors = [json.loads(line) for line in (tmp_path / "run/errors.jsonl").read_text().splitlines()]
    assert [row["green"] for row in errors] == [1, 1]
    rows = [json.loads(line) for line in (tmp_path / "run/statements.jsonl").read_text().splitlines()]
    assert [row["radfact_spatial_recall"] for row in rows] == [1, 1]


def test_runs_become_the_index_of_a_model_card(tmp_path, capsys):
    import yaml

    data = drawn.write(tmp_path / "data", patients=1, test_patients=1)
    words = [
        "benchmark",
        "unimed/any",
        "no:",
        "--data",
        str(data),
        "--resamples",
        "5",
        "--worst",
        "0",
        "--no-baselines",
    ]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["benchmark", "--model-card", str(tmp_path / "run"), "--card-name", "nobody"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("---\n") and text.endswith("---\n")
    (index,) = yaml.safe_load(text.strip("-\n"))["model-index"]
    metrics = {m["name"]: m["value"] for result in index["results"] for m in result["metrics"]}
    assert index["name"] == "nobody" and metrics["mask/referring/dice"] == 0
    assert index["results"][0]["dataset"]["name"] == "unimed/any" and index["results"][0]["dataset"]["revision"]
