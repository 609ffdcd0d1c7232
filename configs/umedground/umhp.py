"""The published `--Umhp_box_head`, which crashes there: hypotheses weighted by their own error."""

_base_ = ["mrg_ms_cxr.py"]

task = dict(model=dict(box_head="umhp"))
work_dir = "work_dirs/umedground_umhp"
