"""UniMed-CLIP ViT-B/16 as published: MetaCLIP 400M and BiomedBERT base, 10 epochs of 5.3 M pairs, 2048 at a time.

2048 pairs are 8 processes of 256 here; towers run over 128 at a time, so that a GPU of 40 GB holds it.
"""

_base_ = ["../_base_/contrastive_run.py", "./_sources.py"]

task = dict(
    type="ContrastiveTask",
    model=dict(type="Clip", variant="unimed_clip_vit_b16"),
    vision_init="pretrained/metaclip_b16_400m.pt",
    text_init="pretrained/BiomedBERT-base",
    tokenizer="pretrained/BiomedBERT-base",
    chunk_size=128,
)
optimizer = dict(lr=5e-4)
schedule = dict(warmup=2000)
max_steps = 25840
gradient_checkpointing = True
num_workers = 8
checkpoint = dict(interval=1000, keep=3)
log = dict(to=("tensorboard",))
guards = dict(max_broken=10000)
work_dir = "work_dirs/unimed_clip_vit_b16"
