"""Our benchmarks as tasks of lmms-eval and our contestants as its models: the same number on the same predictions."""

import json

import pytest
from evaluation.harness import drawn, layouts

from unimed.commands.cli import main
from unimed.data.readers.records import RecordDataset
from unimed.evaluation.benchmarks import benchmark
from unimed.evaluation.bridges import lmms_tasks
from unimed.evaluation.harness.plan import Plan, execute
from unimed.evaluation.rows import answer_of


@pytest.fixture
def questions(tmp_path):
    """PMC-VQA's drawn cases and answers to them, every other one right."""
    layouts.pmc_vqa(tmp_path / "data")
    dataset = benchmark("pmc_vqa").dataset(tmp_path / "data")
    lines = [
        {"case": dataset[i].sample_id, "text": answer_of(dataset[i]) if i else "no idea"} for i in range(len(dataset))
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_documents_stand_for_samples_and_are_scored_as_ours(questions, capsys):
    words = ["benchmark", "pmc_vqa", "--data", str(questions / "data"), "--lmms-tasks", str(questions / "tasks")]
    assert main(words) == 0
    assert capsys.readouterr().out.strip().endswith("unimed_vqa_pmc_vqa.yaml")
    lines = (questions / "tasks/data/unimed_vqa_pmc_vqa.jsonl").read_text().splitlines()
    documents = [json.loads(line) for line in lines]
    assert [doc["index"] for doc in documents] == [0, 1]
    assert "B. MRI" in lmms_tasks.doc_to_text(documents[0]) and lmms_tasks.doc_to_target(documents[1]) == "MRI"
    assert lmms_tasks.doc_to_visual(documents[0])[0].mode == "RGB"
    values = [
        lmms_tasks.process_results(doc, [text])[lmms_tasks.METRIC]
        for doc, text in zip(documents, ("A", "A"), strict=True)
    ]
    assert values == [[1.0], [0.0]] and lmms_tasks.mean_of_rows(values) == 0.5


def test_boxes_in_answers_are_scored_too(tmp_path):
    layouts.padchest_gr(tmp_path / "data")
    one = benchmark("padchest_gr_one")
    lmms_tasks.write_task(one, tmp_path / "data", tmp_path / "tasks")
    document = json.loads((tmp_path / "tasks/data/unimed_boxes_padchest_gr_one.jsonl").read_text().splitlines()[0])
    assert "JSON" in lmms_tasks.doc_to_text(document)
    right = '[{"bbox_2d": [100, 200, 400, 600]}]'
    (value,) = lmms_tasks.process_results(document, [right])[lmms_tasks.METRIC]
    assert value > 0.95 and lmms_tasks.process_results(document, ["nowhere"])[lmms_tasks.METRIC] == [0.0]


def test_lmms_eval_gives_the_same_number(questions, monkeypatch):
    pytest.importorskip("lmms_eval")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from unimed.evaluation.bridges.lmms_model import Unimed, manifest

    assert manifest().model_id == "unimed"
    one = benchmark("pmc_vqa")
    lmms_tasks.write_task(one, questions / "data", questions / "tasks")
    plan = Plan("vqa/pmc_vqa", f"predictions:{questions / 'answers.jsonl'}", data=str(questions / "data"), resamples=5,
                worst=0, baselines=False, leak_check=False)  # fmt: skip
    ours, _ = execute(plan, questions / "run")

    class InOrder(Unimed):
        """Cases have no ids there: answers are told by their documents."""

        def generate_until(self, requests):
            texts = [json.loads(line)["text"] for line in (questions / "answers.jsonl").read_text().splitlines()]
            assert all("Which modality?" in request.args[0] for request in requests)
            return [texts[request.args[3]] for request in requests]

    monkeypatch.setenv("HF_DATASETS_CACHE", str(questions / "cache"))
    manager = TaskManager("ERROR", include_path=str(questions / "tasks"), include_defaults=False)
    name = lmms_tasks.task_name(one)
    found = simple_evaluate(model=InOrder("no:"), tasks=[name], task_manager=manager, batch_size=1, bootstrap_iters=0,
                            log_samples=False)  # fmt: skip
    number = next(value for key, value in found["results"][name].items() if key.startswith(lmms_tasks.METRIC + ","))
    assert number == ours["headline"]["mean"]["value"] == 0.5


def test_a_contestant_is_a_model_there(questions):
    pytest.importorskip("lmms_eval")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from unimed.evaluation.bridges.lmms_model import Unimed

    data = drawn.write(questions / "own", patients=1, test_patients=2)
    rows = [json.loads(line) for line in (data / "records/test.jsonl").read_text().splitlines()]
    (data / "records/test.jsonl").write_text("\n".join(json.dumps(row) for row in rows if row["task"] == "vqa"))
    truth = [answer_of(RecordDataset(data, split="test")[i]) for i in range(4)]
    one = benchmark("pmc_vqa").__class__(
        **{**vars(benchmark("unimed/any")), "headline": "exact_match", "row_kind": "answer"}
    )
    monkey = lmms_tasks.benchmark
    lmms_tasks.benchmark = lambda name: one if name == "unimed/any" else monkey(name)
    try:
        lmms_tasks.write_task(one, data, questions / "tasks")
        manager = TaskManager("ERROR", include_path=str(questions / "tasks"), include_defaults=False)
        found = simple_evaluate(model=Unimed("no:"), tasks=["unimed_unimed_any"], task_manager=manager, batch_size=1,
                                bootstrap_iters=0, log_samples=False)  # fmt: skip
    finally:
        lmms_tasks.benchmark = monkey
    number = next(v for k, v in found["results"]["unimed_unimed_any"].items() if k.startswith(lmms_tasks.METRIC + ","))
    assert number == sum(answer == "no" for answer in truth) / len(truth)
