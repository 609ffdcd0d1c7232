"""One model for everything: a connector of experts that routes by task, [SEG], [BOX] and presence in one training.

On the sample set, minutes on one CPU core:

    bash tools/dist.sh train configs/unified/_tiny.py 1
"""


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
    cache_images=1000,
    max_new_tokens=64,
    batch_size=16,
)
train_data = dict(
    mixture=[
        dict(dataset=records("train", "referring", "absent"), weight=4.0),
        dict(dataset=records("train", "box"), weight=2.0),
        dict(dataset=records("train", "vqa", "classification"), weight=2.0),
        dict(dataset=records("train", "caption", "report"), weight=2.0),
        dict(dataset=records("train", "region"), weight=1.0),
    ]
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
