"""UniMed-CLIP ViT-L/14 at 336 pixels with BiomedBERT large."""

_base_ = ["./vit_l14_base_text_encoder.py"]

task = dict(
    model=dict(variant="unimed_clip_vit_l14_large_text_encoder"),
    text_init="pretrained/BiomedBERT-large",
    tokenizer="pretrained/BiomedBERT-large",
)
work_dir = "work_dirs/unimed_clip_vit_l14_large_text_encoder"
