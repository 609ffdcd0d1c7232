"""What the card of an exported model says: its own name, an example of its family, counts as counts."""

import importlib
import json
from types import SimpleNamespace

import pytest

from unimed.engine.exporting import _card


class Settings(dict):
    filename = "configs/uni_med/_tiny.py"


@pytest.mark.parametrize(
    ("module", "task", "example"),
    [
        ("parsing", "ParseTask", "left kidney[SEP]liver"),
        ("grounding", "GroundingTask", "Segment the nuclei."),
        ("report_grounding", "ReportGrounding", "pleural effusion"),
        ("contrastive", "ContrastiveTask", "zero_shot"),
    ],
)
def test_title_example_and_numbers(tmp_path, module, task, example):
    step = tmp_path / "run" / "checkpoints" / "step_00000007"
    step.mkdir(parents=True)
    (step / "metadata.json").write_text("{}")
    (tmp_path / "run" / "test").mkdir()
    numbers = {"summary": {"vqa/samples": 33.0, "vqa/accuracy": 0.51234}}
    (tmp_path / "run" / "test" / "metrics.json").write_text(json.dumps(numbers))
    kind = getattr(importlib.import_module(f"unimed.tasks.{module}"), task)
    shown = SimpleNamespace(card_tags=kind.card_tags, card_example=kind.card_example)
    weights = step / "model.safetensors"
    weights.write_bytes(b"")
    text = _card(Settings(max_steps=7, epochs=None), weights, shown, "my_model")
    assert "\n# my_model\n" in text and "_tiny\n" not in text and example in text
    assert "| vqa/samples | 33 |" in text and "| vqa/accuracy | 0.5123 |" in text
