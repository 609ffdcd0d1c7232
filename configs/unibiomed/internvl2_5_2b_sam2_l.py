"""UniBiomed on InternVL2.5-2B and SAM 2 large."""

_base_ = "_base.py"
task = dict(
    model=dict(type="GroundedMLLM", backbone="pretrained/InternVL2_5-2B", sam2="pretrained/sam2_hiera_large.pt")
)
work_dir = "work_dirs/unibiomed_internvl2_5_2b_sam2_l"
