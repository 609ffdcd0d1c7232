"""The unified model on InternVL3.5-1B as transformers writes it (OpenGVLab/InternVL3_5-1B-HF), and SAM 2 large."""

_base_ = "_base.py"
task = dict(
    model=dict(
        type="GroundedMLLM",
        backbone="pretrained/InternVL3_5-1B-HF",
        sam2="pretrained/sam2_hiera_large.pt",
        presence_head=True,
        box_head="laplace_mixture",
    )
)
work_dir = "work_dirs/unified_internvl3_5_1b"
