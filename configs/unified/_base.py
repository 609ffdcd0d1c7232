"""The unified model on everything: one mixture over the data of all systems and records, all tasks in one training.

Each file beside this one names a backbone. Data sets that are not below `data` are left out by name, and a table of
what remains is printed before training (docs/training.md). With 8 GPUs a step is 256 samples.
"""

_base_ = "../_base_/gpu_run.py"

from unimed.data.readers.unified_mixture import mixture  # noqa: E402

task = dict(
    type="GroundingTask",
    lora=dict(r=64, lora_alpha=128, lora_dropout=0.05),
    trainable=["backbone.vlm.model.language_model.embed_tokens", "backbone.vlm.lm_head"],
    freeze=["backbone.vlm.model.vision_tower", "mask_head.sam.vision_encoder"],
    # Experts that route by task; they take the place of the backbone's projector.
    connector=dict(
        projector_type="moe_mlp",
        num_experts=5,
        router_type="soft",
        resample_method="none",
        load_balancing_weight=0.01,
    ),
    # Pairs of image and caption are also told from one another.
    loss_weights=dict(pairs=0.1),
    mask_points=12544,
    max_new_tokens=256,
)
# A quarter of the questions for masks is mirrored, a quarter worded otherwise, a tenth asks for what cannot be there.
train_data = dict(
    mixture=mixture("data", hard=dict(mirrored=0.25, reworded=0.25, nonsense=0.1)),
    # Square roots of the numbers of samples, of tasks and of the data sets of each.
    balance=dict(task=2.0, dataset=2.0),
    group_by_length=4,
)
collate = dict(type="GroundedCollator", mask_target_size=256)
optimizer = dict(lr=4e-5, betas=(0.9, 0.999), weight_decay=0.05)
schedule = dict(type="cosine", warmup=0.03)
batch_size = 4
accumulate = 8
max_steps = 30000
gradient_checkpointing = True
hooks = [dict(type="RoutingHook", interval=500)]
checkpoint = dict(interval=1000, keep=3, weights="trainable")
guards = dict(max_broken=10000)
