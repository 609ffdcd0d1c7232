"""The unified model on InternVL3.5-8B as transformers writes it (OpenGVLab/InternVL3_5-8B-HF), and SAM 2 large."""

_base_ = "_base.py"
task = dict(
    model=dict(
        type="GroundedMLLM",
        backbone="pretrained/InternVL3_5-8B-HF",
        sam2="pretrained/sam2_hiera_large.pt",
        presence_head=True,
        box_head="laplace_mixture",
    )
)
work_dir = "work_dirs/unified_internvl3_5_8b"
# Optimizer state and gradients over the GPUs; two samples at a time.
strategy = "zero2"
batch_size = 2
accumulate = 16
