"""Run by test_tensor_parallel.py: a grounded model trained by one process and by two ranks that share its layers."""

import sys
from pathlib import Path

import torch
import worlds
from data.tiny_sets import records

from unimed.engine import train


def config(data, **changes):
    model = dict(type="SmallGroundedMLLM", texts=["Segment the disc. It is [SEG]."], hidden_dim=64, layers=2, heads=4,
                 mask_config=dict(model_type="unimed_light", image_size=32, width=16))  # fmt: skip
    return worlds.tiny.config(
        task=dict(type="GroundingTask", model=model),
        train_data=dict(type="RecordDataset", path=str(data), split="train"), val_data=None, test_data=None,
        collate=dict(type="GroundedCollator"), optimizer=dict(type="AdamW", lr=1e-3), batch_size=2, max_steps=4,
        validate_interval=0, clip=1.0, checkpoint=dict(interval=2, keep=3),
    ) | changes  # fmt: skip


def main(folder):
    data = folder / "data"
    records(data)
    train(config(data), folder / "one")

    def both():
        train(config(data, strategy="tp"), folder / "two")
        parts = dict(interval=2, keep=3, sharded=True)
        cut = config(data, strategy="tp", checkpoint=parts)
        train(cut, folder / "cut", resume=str(folder / "two" / "checkpoints" / "step_00000002"))

    torch.save({"codes": worlds.run(2, both, folder / "output")}, folder / "done.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
