"""configs/unified/_tiny.py: experts, [SEG], [BOX] and presence learn together, on the records of a tiny data set."""

from pathlib import Path

import torch
from data.tiny_sets import records
from small_models import TEXTS, tiny_mask_config

from unimed.data.collate.grounded import GroundedCollator
from unimed.engine.config import load_config
from unimed.registry import DATASETS, TASKS

CONFIG = Path(__file__).parents[2] / "configs" / "unified" / "_tiny.py"


def test_one_config_trains_experts_masks_boxes_and_answers(tmp_path):
    config = load_config(CONFIG)
    options = config.task.to_dict()
    options["model"] |= dict(texts=TEXTS * 3, hidden_dim=32, layers=1, heads=2, vision_grid=2)
    options["model"] |= dict(mask_config=tiny_mask_config(), vocabulary=400)
    options["model"]["connector"] |= dict(task_token_c=8)
    task = TASKS.build(options).train()
    own = str(records(tmp_path / "own"))
    samples = [s for s in DATASETS.build(dict(type="RecordDataset", path=own)) if s.labels["task"] != "volume"]
    collate = GroundedCollator(task.processor)
    batch, first = collate(samples), None
    optimizer = torch.optim.AdamW(task.train_parameters(), lr=3e-3)
    for _ in range(12):
        losses = task(batch)
        first = first or {name: float(value.detach()) for name, value in losses.items()}
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    last = {name: float(value.detach()) for name, value in losses.items()}
    assert last["text"] < 0.9 * first["text"] and last["loss"] < 0.9 * first["loss"] and last["dice"] < first["dice"]
    assert {"dice", "bce", "presence", "box", "connector"} <= set(last)
    summary = task.task_summary()
    routed = {name.split("/")[1] for name in summary if name.startswith("routing/")}
    assert routed == {"refer", "vqa", "cls", "caption", "identify"}
    assert {name.split("/")[1] for name in summary if name.startswith("loss/")} == routed
    assert len(task.predict_samples(samples[:3])) == 3
    task.export(tmp_path / "out")
    import unimed

    again = unimed.load(tmp_path / "out", device="cpu")
    with again.routed_as("refer"):
        assert isinstance(again.predict(samples[0].images[0], "Segment the liver.", max_new_tokens=4).text, str)
