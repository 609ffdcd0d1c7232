"""Run once for several tests: grounded models trained by one process, and by ranks that share layers or samples."""

import sys
from pathlib import Path

import torch
import torch.distributed.fsdp
import torch.distributed.tensor.parallel  # before ranks are forked, so that it is paid for once
import worlds
from data.tiny_sets import records
from models.grounded.native_models import tiny_config, tiny_processor

from unimed.engine import train


def config(data, model, **changes):
    return worlds.tiny.config(
        task=dict(type="GroundingTask", model=model),
        train_data=dict(type="RecordDataset", path=str(data), split="train"), val_data=None, test_data=None,
        collate=dict(type="GroundedCollator"), optimizer=dict(type="AdamW", lr=1e-3), max_steps=4,
        validate_interval=0, clip=1.0, checkpoint=dict(interval=2, keep=3),
    ) | changes  # fmt: skip


def small(**options):
    return dict(type="SmallGroundedMLLM", texts=["Segment the disc. It is [SEG]."], hidden_dim=64, layers=2, heads=4,
                mask_config=dict(model_type="unimed_light", image_size=32, width=16)) | options  # fmt: skip


def native(folder):
    """A Qwen3-VL with random weights as a folder; features of inner layers of its encoder go into inner layers."""
    from transformers import AutoModelForImageTextToText

    from unimed.models.heads.light import LightMaskConfig
    from unimed.models.starting.native import build_on_native

    torch.manual_seed(0)
    processor = tiny_processor("qwen3_vl")
    vlm = AutoModelForImageTextToText.from_config(tiny_config("qwen3_vl", processor.tokenizer))
    build_on_native(vlm, processor, LightMaskConfig(image_size=32, width=16, heads=2)).save_pretrained(folder)
    return str(folder)


def main(folder):
    data = folder / "data"
    records(data)
    codes = []

    def run(size, name, model, *, resume=None, **changes):
        def work():
            train(config(data, model, **changes), folder / name, resume=resume)

        codes.extend(worlds.run(size, work, folder / "output" / name))

    plain = small()
    run(1, "one", plain, batch_size=2)
    run(2, "tensor", plain, batch_size=2, strategy="tp")
    parts = dict(interval=2, keep=3, sharded=True)
    run(2, "tensor-cut", plain, batch_size=2, strategy="tp", checkpoint=parts,
        resume=str(folder / "tensor" / "checkpoints" / "step_00000002"))  # fmt: skip
    adapters = dict(type="GroundingTask", model=plain, lora=dict(r=4))
    run(1, "lora-one", plain, batch_size=2, task=adapters, max_steps=3, checkpoint=dict(interval=1, keep=3))
    run(2, "lora-tensor", plain, batch_size=2, task=adapters, max_steps=3, checkpoint=dict(interval=1, keep=3),
        strategy="tp")  # fmt: skip
    boxes, image_text = small(box_head="point"), native(folder / "native")
    short = dict(max_steps=2, checkpoint=dict(interval=1, keep=2))
    run(1, "boxes-one", boxes, batch_size=4, **short)
    shared = dict(context_parallel=2, strategy="fsdp2", gradient_checkpointing=True)
    run(4, "boxes-context", boxes, batch_size=2, **shared, **short)
    run(1, "native-one", image_text, batch_size=9, **short)
    run(2, "native-context", image_text, batch_size=9, context_parallel=2, **short)
    torch.save({"codes": codes}, folder / "done.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
