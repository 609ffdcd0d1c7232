"""UniMed-CLIP ViT-B/16 as published: MetaCLIP 400M eyes, BiomedBERT base, 10 epochs of 5.3 M pairs, 2048 at a time.

2048 pairs are 8 processes of 256 here; towers run over 128 at a time, so that a GPU of 40 GB holds it.
"""

_base_ = ["./_sources.py"]

task = dict(
    type="ContrastiveTask",
    model="unimed_clip_vit_b16",
    vision_init="pretrained/metaclip_b16_400m.pt",
    text_init="pretrained/BiomedBERT-base",
    tokenizer="pretrained/BiomedBERT-base",
    chunk_size=128,
)
optimizer = dict(type="AdamW", lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
schedule = dict(type="cosine", warmup=2000, warmup_full=True)
batch_size = 256
max_steps = 25840
precision = "bf16"
gradient_checkpointing = True
num_workers = 8
checkpoint = dict(interval=1000, keep=3)
log = dict(interval=50, to=("tensorboard",))
guards = dict(max_broken=10000)
seed = 0
work_dir = "work_dirs/unimed_clip_vit_b16"
