"""UniMed-CLIP in small on the sample set: a ViT and a BERT that start from nothing, minutes on one CPU core."""

_base_ = "../_base_/sample_run.py"


def pairs(split):
    return dict(
        type="ImageTextRecords",
        path="data/sample",
        split=split,
        tasks=("caption", "report"),
        templates=(
            "{modality}",
            "{modality} image",
            "{modality} of the {site}",
            "an image of the {site} by {modality}",
        ),
        label="{modality}",
    )


task = dict(
    type="ContrastiveTask",
    model=dict(type="SmallClip", texts="data/sample/records/train.jsonl", image_size=64, patch_size=8),
    # Captions made from labels repeat in every batch; those that are equal fit each other.
    multi_positive=True,
    labels=(
        "CT",
        "MRI",
        "X-ray",
        "ultrasound",
        "fluorescence microscopy",
        "histology",
        "fundus photography",
        "bone scan",
    ),
    templates=("{}", "{} image"),
)
train_data = pairs("train")
val_data = pairs("val")
test_data = pairs("test")
collate = dict(type="ImageTextCollator", scale=(0.6, 1.0))
optimizer = dict(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
batch_size = 48
validate_interval = 100
validate_samples = 64
test_batch_size = 32
work_dir = "work_dirs/unimed_clip_tiny"
