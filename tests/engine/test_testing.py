"""What a test of a run prints: baselines made of the training data stand beside the scores, where a task has them."""

import ast
import inspect
import json
import textwrap

import numpy as np
import pytest
from PIL import Image

from unimed.engine import evaluate, train
from unimed.models.starting.grounded_small import build_tiny
from unimed.registry import TASKS, registered
from unimed.tasks.base import Task


@pytest.mark.parametrize("name", sorted(registered(TASKS)))
def test_tasks_that_score_against_training_data_are_given_it(name):
    task = registered(TASKS)[name]
    body = ast.parse(textwrap.dedent(inspect.getsource(task.score))).body[0]
    uses = any(isinstance(node, ast.Name) and node.id == "train" for node in ast.walk(body))
    promised = inspect.getattr_static(task, "scores_against_training_data")
    assert uses == (promised is not inspect.getattr_static(Task, "scores_against_training_data"))


def test_masks_and_answers_are_printed_beside_their_baselines(tmp_path):
    data = tmp_path / "data"
    (data / "records").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for n in range(4):
        mask = np.zeros((32, 32), np.uint8)
        mask[4 : 14 + n, 6:20] = 255
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(data / f"i{n}.png")
        Image.fromarray(mask).save(data / f"m{n}.png")
        common = {"image": f"i{n}.png", "patient_id": f"P{n}"}
        region = {"phrase": "node", "mask": f"m{n}.png", "present": True}
        rows.append({"id": f"s{n}", "task": "referring", "question": "Segment the node.",
                     "answer": "<p> node </p> [SEG].", "regions": [region], **common})  # fmt: skip
        rows.append({"id": f"q{n}", "task": "vqa", "question": "Is there a node?", "answer": "yes.", **common})
    for split, part in (("train", rows[:6]), ("test", rows[6:])):
        (data / "records" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    model = build_tiny([row["question"] + row["answer"] for row in rows])
    model.save_pretrained(tmp_path / "model")

    def records(split):
        return dict(type="RecordDataset", path=str(data), split=split)

    config = dict(
        task=dict(type="GroundingTask", model=str(tmp_path / "model"), max_new_tokens=4),
        train_data=records("train"), test_data=records("test"), collate=dict(type="GroundedCollator"),
        optimizer=dict(type="AdamW", lr=1e-4), max_steps=1, batch_size=2,
        device="cpu", work_dir=str(tmp_path / "run"),
    )  # fmt: skip
    train(config)
    # Baselines are made of the records, whatever training does to them.
    moved = dict(type="AugmentedDataset", dataset=records("train"), zoom=(9.0, 9.0))
    config["train_data"] = dict(type="HardPromptDataset", dataset=moved, mirrored=1.0, nonsense=1.0)
    tables = evaluate(config)["tables"]
    (masks,) = tables["masks"]
    assert 0.5 < masks["copy_baseline_dice"].value <= 1
    (answers,) = tables["answers"]
    assert answers["majority_baseline"].value == 1 and 0 <= answers["language_only"].value <= 1
    assert "copy_baseline_dice" in (tmp_path / "run" / "test" / "metrics.md").read_text()
