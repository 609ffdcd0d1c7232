"""BiomedParse v2 in small on the sample set: named masks and things that are not there, minutes on one CPU core."""

_base_ = "../_base_/sample_run.py"


def records(split, *tasks, **more):
    return dict(type="RecordDataset", path="data/sample", split=split, tasks=list(tasks), **more)


task = dict(
    type="ParseTask",
    model=dict(
        type="SmallBoltzFormer",
        prompts=["brain", "grey matter", "white matter", "lesion", "nuclei"],
        image_size=128,
        embed_dim=24,
        hidden_size=96,
        ffn_size=192,
        num_queries=8,
        # At this size existence is only learned where it may teach the rest of the model.
        detach_existence=False,
    ),
    batch_size=16,
)
train_data = dict(
    mixture=[
        dict(dataset=dict(type="AugmentedDataset", dataset=records("train", "referring")), weight=1.5),
        dict(dataset=dict(type="AugmentedDataset", dataset=records("train", "absent")), weight=1.0),
    ]
)
val_data = dict(
    mixture=[
        dict(dataset=records("val", "referring", "absent")),
        dict(dataset=records("val", "volume")),
    ]
)
test_data = dict(
    mixture=[
        dict(dataset=records("test", "referring", "absent")),
        dict(dataset=records("test", "volume")),
    ]
)
collate = dict(type="ParseCollator")
optimizer = dict(weight_decay=0.01)
schedule = dict(warmup=50)
batch_size = 8
max_steps = 1000
clip = 5.0
checkpoint = dict(interval=250)
log = dict(interval=50)
validate_interval = 250
validate_samples = 32
test_batch_size = 16
work_dir = "work_dirs/biomedparse_tiny"
