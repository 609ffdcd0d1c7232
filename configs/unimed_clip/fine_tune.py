"""Tune a converted UniMed-CLIP on a user's own pairs: image tower locked but for its last groups, small rates.

Average the result with the model it started from afterwards: `python tools/clip.py average START TUNED OUT`.
"""

_base_ = "../_base_/contrastive_run.py"

task = dict(
    type="ContrastiveTask",
    model="pretrained/unimed_clip_vit_b16",
    lock_image=2,
    multi_positive=True,
    chunk_size=64,
)
train_data = dict(type="ImageTextShards", shards="data/mine/dataset-*.tar", name="mine")
collate = dict(type="ImageTextCollator", scale=(0.9, 1.0))
optimizer = dict(lr=1e-5)
schedule = dict(warmup=100)
max_steps = 2000
work_dir = "work_dirs/unimed_clip_fine_tune"
