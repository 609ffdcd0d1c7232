"""The sigmoid loss instead of InfoNCE on the thirteen sources; no softmax over the batch, so smaller batches do."""

_base_ = ["./vit_b16.py"]

task = dict(loss="siglip")
work_dir = "work_dirs/unimed_clip_siglip"
