"""The unified model on InternVL3-78B as transformers writes it (OpenGVLab/InternVL3-78B-hf), and SAM 2 large.

Planned, never run: `unimed plan configs/unified/internvl3_78b.py --gpus 32` says what it needs (docs/clusters.md).
"""

_base_ = "_base.py"
task = dict(
    frozen_dtype="bfloat16",
    trainable=[],
    model=dict(
        type="GroundedMLLM",
        backbone="pretrained/InternVL3-78B-hf",
        sam2="pretrained/sam2_hiera_large.pt",
        presence_head=True,
        box_head="laplace_mixture",
    ),
)
work_dir = "work_dirs/unified_internvl3_78b"
strategy = "fsdp2"
batch_size = 1
accumulate = 8
# Each rank writes and reads its own part.
checkpoint = dict(interval=500, keep=3, weights="trainable", background=True, sharded=True)
