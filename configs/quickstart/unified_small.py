"""The quickstart: one small model, all tasks of the sample set in one mixture, minutes on two CPU cores."""

_base_ = "../_base_/sample_run.py"


def records(split, *tasks, **arguments):
    return dict(type="RecordDataset", path="data/sample", split=split, tasks=list(tasks), **arguments)


task = dict(
    type="GroundingTask",
    model="pretrained/unified_small",
    # The vision encoder is frozen, so every image is encoded once and its features are kept, also for other runs.
    cache_images=1000,
    cache_folder="work_dirs/features",
    max_new_tokens=96,
    batch_size=16,
)
train_data = dict(
    mixture=[
        dict(dataset=records("train", "referring"), weight=4.0),
        dict(dataset=records("train", "absent"), weight=2.0),
        dict(dataset=records("train", "box"), weight=1.5),
        dict(dataset=records("train", "vqa"), weight=2.0),
        dict(dataset=records("train", "classification"), weight=1.0),
        dict(dataset=records("train", "caption"), weight=0.5),
        dict(dataset=records("train", "report"), weight=1.5),
        dict(dataset=records("train", "region"), weight=1.0),
        # Four volumes, eight slices each: this shows the road, not a result.
        dict(dataset=records("train", "volume", slices=8, foreground_fraction=0.6), weight=0.25),
    ]
)
val_data = records("val", "referring", "absent", "box", "vqa")
test_data = dict(
    mixture=[
        dict(
            dataset=records(
                "test", "referring", "absent", "box", "vqa", "classification", "caption", "report", "region"
            )
        ),
        dict(dataset=records("test", "volume", to_uint8=True)),
    ]
)
collate = dict(type="GroundedCollator")
optimizer = dict(weight_decay=0.02)
schedule = dict(warmup=50)
batch_size = 16
max_steps = 500
checkpoint = dict(interval=125)
validate_interval = 250
validate_samples = 48
test_batch_size = 32
work_dir = "work_dirs/unified_small"
