"""The quickstart: one small model, all tasks of the sample set in one mixture, minutes on one CPU core."""

_base_ = "../_base_/sample_run.py"


def records(split, *tasks, **arguments):
    return dict(type="RecordDataset", path="data/sample", split=split, tasks=list(tasks), **arguments)


def hard(dataset, **fractions):
    """Other wordings (some words of them invented), nonsense, mirrored images: what makes answers honest and steady.

    Half of the answers about what is not there point at it all the same, as an example for the presence head alone.
    """
    fractions = dict(mirrored=0.3, reworded=0.6, garbled=0.3, nonsense=0.0, invented=0.7, pointed=0.5) | fractions
    return dict(type="HardPromptDataset", dataset=dataset, **fractions)


def tissues(task, **arguments):
    return records("train", task, phrases=["brain", "grey matter", "white matter"], **arguments)


def varied(dataset, **changes):
    """Turned, mirrored, moved, zoomed in four fixed ways, whose features are kept like those of the images."""
    changes = dict(variants=4, zoom=(0.6, 1.8), move=0.15, specks=(0.0, 0.0), keep_regions=True) | changes
    return dict(type="AugmentedDataset", dataset=dataset, **changes)


task = dict(
    type="GroundingTask",
    model="pretrained/unified_small",
    # The vision encoder is frozen, so every image is encoded once and its features are kept, also for other runs.
    cache_images=1500,
    cache_folder="work_dirs/features",
    max_new_tokens=96,
    batch_size=16,
    # A box is asked for in a tenth of the questions, and its head is the smallest part.
    learning_rates={"box_head": 3.0},
)
train_data = dict(
    mixture=[
        # The tissues of one slice in one answer: asked for one at a time they are mistaken for one another.
        dict(dataset=hard(tissues("referring", targets=2)), weight=2.0),
        dict(dataset=hard(tissues("referring", targets=(1, 1))), weight=1.5),
        # Each kind of thing by itself: there are ten images of nuclei and ninety-nine masks of the brain.
        dict(dataset=hard(records("train", "referring", phrases=["nuclei"])), weight=1.0),
        dict(dataset=hard(varied(records("train", "referring", phrases=["lesion"])), mirrored=0.0), weight=1.2),
        # Questions without a mask cost a tenth of others, and whether a thing is there is learnt slowest.
        dict(dataset=hard(tissues("absent"), nonsense=0.25), weight=2.5),
        dict(dataset=hard(records("train", "absent", phrases=["nuclei"]), nonsense=0.25), weight=2.0),
        dict(dataset=hard(records("train", "absent", phrases=["lesion"]), nonsense=0.25), weight=1.5),
        dict(dataset=hard(records("train", "box")), weight=2.0),
        dict(dataset=records("train", "vqa"), weight=3.0),
        dict(dataset=records("train", "classification"), weight=2.0),
        dict(dataset=records("train", "caption"), weight=0.4),
        dict(dataset=records("train", "report"), weight=0.8),
        dict(dataset=records("train", "region"), weight=0.75),
        # Four volumes, four slices each: this shows the road, not a result.
        dict(dataset=records("train", "volume", slices=4, foreground_fraction=0.6), weight=0.15),
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
# Several questions in a row: a third of the tokens of padded rows is padding.
collate = dict(type="GroundedCollator", pack=128)
optimizer = dict(weight_decay=0.02)
schedule = dict(warmup=30)
batch_size = 12
max_steps = 500
checkpoint = dict(interval=125)
validate_interval = 250
validate_samples = 48
test_batch_size = 32
work_dir = "work_dirs/unified_small"
