"""UniBiomed as published: 93 sets in one mixture, LoRA on the language model, SAM 2 decoder tuned.

Each file beside this one names a backbone. Put the parts into `pretrained/` (pretrained/README.md) and the sets below
`data/Biomed` (docs/unibiomed.md); `python tools/check_data.py data/Biomed` finds what is wrong before training does.

With the published 8 GPUs a step is 128 samples.
"""

_base_ = "../_base_/gpu_run.py"

from unimed.data.readers.unibiomed_mixture import mixture  # noqa: E402

train_data = dict(mixture=mixture("data/Biomed"), group_by_length=4)
task = dict(
    type="GroundingTask",
    lora=dict(r=128, lora_alpha=256, lora_dropout=0.05),
    trainable=["backbone.vlm.model.language_model.embed_tokens", "backbone.vlm.lm_head"],
    freeze=[
        "backbone.vlm.model.vision_tower",
        "mask_head.sam.vision_encoder",
        # Single images never reach the memory; published training hands it to the optimiser without a gradient.
        "mask_head.sam.memory_attention",
        "mask_head.sam.memory_encoder",
        "mask_head.sam.object_pointer_proj",
        "mask_head.sam.mask_downsample",
        "mask_head.sam.no_memory_embedding",
        "mask_head.sam.no_memory_positional_encoding",
        "mask_head.sam.memory_temporal_positional_encoding",
        "mask_head.sam.no_object_pointer",
    ],
    loss_weights=dict(text=1.0, bce=2.0, dice=0.5),
    mask_points=12544,
    max_new_tokens=256,
)
collate = dict(type="GroundedCollator", mask_target_size=256)
optimizer = dict(lr=4e-5, betas=(0.9, 0.999), weight_decay=0.05)
schedule = dict(type="cosine", warmup=0.05)
batch_size = 4
accumulate = 4
epochs = 10
gradient_checkpointing = True
checkpoint = dict(keep=3, weights="trainable")
log = dict(interval=10)
seed = 42
