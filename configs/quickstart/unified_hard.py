"""The quickstart's model on harder questions: each kind of thing by itself, other wordings, nonsense, mirrored images.

    unimed new-model pretrained/unified_hard --data data/sample --mask-width 64
    bash tools/dist.sh train configs/quickstart/unified_hard.py 1

It points less at what does not exist and finds nuclei in either question, in about half of the time of
`unified_small.py`, which outlines tissues better; docs/training.md has the figures of three seeds.
"""

_base_ = "unified_small.py"


def records(split, *tasks, **arguments):
    return dict(type="RecordDataset", path="data/sample", split=split, tasks=list(tasks), **arguments)


def hard(dataset, **fractions):
    """Other wordings (some words of them invented), nonsense, mirrored images: what makes answers honest and steady."""
    fractions = dict(mirrored=0.3, reworded=0.6, garbled=0.3, nonsense=0.0, invented=0.7) | fractions
    return dict(type="HardPromptDataset", dataset=dataset, **fractions)


def tissues(task):
    return records("train", task, phrases=["brain", "grey matter", "white matter"])


def varied(dataset, **changes):
    """Turned, mirrored, moved, zoomed in four fixed ways, whose features are kept like those of the images."""
    changes = dict(variants=4, zoom=(0.6, 1.8), move=0.15, specks=(0.0, 0.0), keep_regions=True) | changes
    return dict(type="AugmentedDataset", dataset=dataset, **changes)


task = dict(model="pretrained/unified_hard", cache_images=1500)
train_data = dict(
    mixture=[
        # Each kind of thing by itself: there are ten images of nuclei and ninety-nine masks of the brain.
        dict(dataset=hard(tissues("referring")), weight=3.0),
        dict(dataset=hard(records("train", "referring", phrases=["nuclei"])), weight=1.0),
        dict(dataset=hard(varied(records("train", "referring", phrases=["lesion"])), mirrored=0.0), weight=1.2),
        # Questions without a mask cost a tenth of others, and whether a thing is there is learnt slowest.
        dict(dataset=hard(tissues("absent"), nonsense=0.25), weight=2.5),
        dict(dataset=hard(records("train", "absent", phrases=["nuclei"]), nonsense=0.25), weight=2.0),
        dict(dataset=hard(records("train", "absent", phrases=["lesion"]), nonsense=0.25), weight=1.5),
        dict(dataset=records("train", "box"), weight=1.25),
        dict(dataset=records("train", "vqa"), weight=3.0),
        dict(dataset=records("train", "classification"), weight=1.5),
        dict(dataset=records("train", "caption"), weight=0.4),
        dict(dataset=records("train", "report"), weight=0.8),
        dict(dataset=records("train", "region"), weight=0.75),
        # Four volumes, four slices each: this shows the road, not a result.
        dict(dataset=records("train", "volume", slices=4, foreground_fraction=0.6), weight=0.15),
    ]
)
schedule = dict(warmup=30)
batch_size = 24
max_steps = 300
checkpoint = dict(interval=100)
validate_interval = 300
work_dir = "work_dirs/unified_hard"
