"""One model for everything in small: the mixture of `_base.py` with what is there, on one CPU core or two gloo ranks.

With the sample set alone it takes minutes:

    bash tools/dist.sh train configs/unified/_tiny.py 1
"""

from unimed.data.readers.unified_mixture import mixture


def records(split, *tasks):
    return dict(type="RecordDataset", path="data/sample", split=split, tasks=list(tasks))


task = dict(
    type="GroundingTask",
    model=dict(
        type="SmallGroundedMLLM",
        texts="data/sample/records/train.jsonl",
        hidden_dim=128,
        layers=3,
        vision_grid=4,
        box_head="point",
        connector=dict(
            projector_type="moe_mlp",
            num_experts=5,
            router_type="soft",
            resample_method="none",
            task_token_c=32,
            load_balancing_weight=0.01,
        ),
    ),
    # Pairs of image and caption are also told from one another.
    loss_weights=dict(pairs=0.1),
    cache_images=1000,
    max_new_tokens=64,
    batch_size=16,
)
train_data = dict(
    mixture=mixture("data", hard=dict(mirrored=0.25, reworded=0.25, nonsense=0.1), slices=4),
    balance=dict(task=2.0, dataset=2.0),
)
val_data = records("val", "referring", "box", "vqa")
test_data = records("test", "referring", "absent", "box", "vqa", "classification", "caption", "report", "region")
collate = dict(type="GroundedCollator")
optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.05)
schedule = dict(type="cosine", warmup=20)
hooks = [dict(type="RoutingHook", interval=50)]
batch_size = 8
max_steps = 300
clip = 1.0
checkpoint = dict(interval=150, keep=2)
log = dict(interval=25)
seed = 0
work_dir = "work_dirs/unified_tiny"

# Axes of `unimed grid` beside heads and dialect: the smallest decoder of each kind, and connectors.
grid = dict(
    connector=dict(
        linear={"task.model.connector": dict(_delete_=True, projector_type="linear", resample_method="none")},
        mlp={"task.model.connector": dict(_delete_=True, projector_type="mlp2x_gelu", resample_method="none")},
        experts={"task.model.connector.num_experts": 3},
    ),
    decoder=dict(
        light={"task.model.mask_config": dict(model_type="unimed_light", image_size=64, width=32)},
        medsam_lite={
            "task.model.mask_config": dict(
                model_type="medsam_lite",
                image_size=64,
                embed_dims=[16, 16, 32, 32],
                depths=[1, 1, 1, 1],
                num_heads=[1, 1, 1, 1],
                window_sizes=[4, 4, 4, 4],
                hidden_dim=32,
                decoder_mlp=32,
                text_width=16,
            )
        },
        sam={
            "task.model.mask_config": dict(
                model_type="sam",
                vision_config=dict(
                    image_size=64,
                    patch_size=8,
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    mlp_dim=64,
                    output_channels=32,
                    global_attn_indexes=[1],
                    window_size=4,
                    num_pos_feats=16,
                ),
                prompt_encoder_config=dict(hidden_size=32, image_size=64, patch_size=8, mask_input_channels=8),
                mask_decoder_config=dict(
                    hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32, num_hidden_layers=2
                ),
            )
        },
    ),
)
