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
