"""Uni-Med in small on the sample set: five tasks in every batch, everything trainable, minutes on one CPU core."""

_base_ = "../_base_/sample_run.py"


def part(tasks, split="train"):
    return dict(type="UniMedRecords", path="data/sample", split=split, tasks=list(tasks))


task = dict(
    type="GroundingTask",
    model=dict(
        type="SmallUniMed",
        texts="data/sample/records/train.jsonl",
        image_size=112,
        vision_dim=96,
        hidden_dim=128,
        layers=3,
    ),
    connector=dict(projector_type="moe_mlp", num_experts=5, router_type="soft", task_token_c=32),
    reduction="samples",
    scores="benchmarks",
    max_new_tokens=48,
    batch_size=16,
)
train_data = dict(
    mixture=[
        dict(dataset=part(["vqa"]), weight=5.0),
        dict(dataset=part(["refer"]), weight=4.0),
        dict(dataset=part(["identify"]), weight=4.0),
        dict(dataset=part(["caption"]), weight=4.0),
        dict(dataset=part(["cls"]), weight=4.0),
    ]
)
val_data = part(["vqa", "cls"], "val")
test_data = part(["vqa", "refer", "identify", "caption", "cls"], "test")
collate = dict(type="GroundedCollator")
optimizer = dict(weight_decay=0.05)
schedule = dict(warmup=20)
hooks = [dict(type="RoutingHook", interval=50)]
batch_size = 12
work_dir = "work_dirs/uni_med_tiny"
