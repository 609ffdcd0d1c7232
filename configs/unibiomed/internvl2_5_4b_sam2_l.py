"""UniBiomed on InternVL2.5-4B and SAM 2 large."""

_base_ = "_base.py"
task = dict(
    model=dict(type="GroundedMLLM", backbone="pretrained/InternVL2_5-4B", sam2="pretrained/sam2_hiera_large.pt"),
    frozen_dtype="bfloat16",
)
work_dir = "work_dirs/unibiomed_internvl2_5_4b_sam2_l"
