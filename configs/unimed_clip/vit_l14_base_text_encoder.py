"""UniMed-CLIP ViT-L/14 at 336 pixels with BiomedBERT base: MetaCLIP's tower of 224 pixels, its positions resized."""

_base_ = ["./vit_b16.py"]

task = dict(
    model=dict(variant="unimed_clip_vit_l14_base_text_encoder"),
    vision_init="pretrained/metaclip_l14_400m.pt",
    chunk_size=64,
)
optimizer = dict(lr=4e-4)
work_dir = "work_dirs/unimed_clip_vit_l14_base_text_encoder"
