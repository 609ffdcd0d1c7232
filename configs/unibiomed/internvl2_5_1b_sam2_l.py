"""UniBiomed on InternVL2.5-1B and SAM 2 large. The size UniBiomed publishes."""

_base_ = "_base.py"
task = dict(
    model=dict(type="GroundedMLLM", backbone="pretrained/InternVL2_5-1B", sam2="pretrained/sam2_hiera_large.pt")
)
work_dir = "work_dirs/unibiomed_internvl2_5_1b_sam2_l"
