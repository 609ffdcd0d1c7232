"""Tune a converted UniMed-CLIP on a user's own pairs: image tower locked but for its last groups, small rates.

Average the result with the model it started from afterwards: `python tools/clip.py average START TUNED OUT`.
"""

task = dict(
    type="ContrastiveTask",
    model="pretrained/unimed_clip_vit_b16",
    lock_image=2,
    multi_positive=True,
    chunk_size=64,
)
train_data = dict(type="ImageTextShards", shards="data/mine/dataset-*.tar", name="mine")
collate = dict(type="ImageTextCollator", scale=(0.9, 1.0))
optimizer = dict(type="AdamW", lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
schedule = dict(type="cosine", warmup=100, warmup_full=True)
batch_size = 256
max_steps = 2000
precision = "bf16"
num_workers = 4
checkpoint = dict(interval=500, keep=2)
work_dir = "work_dirs/unimed_clip_fine_tune"
