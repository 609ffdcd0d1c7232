"""BiomedParse v2 on 2D images from a set that `tools/prepare_data.py biomedparse` wrote, eight GPUs.

The published recipe: four prompts per image, AdamW without a schedule, dice plus cross entropy on masks and edges
where the target is there, existence everywhere. Every colour is normalised by its own mean. `data/BiomedParse` holds
`train.json`, `train/`, `train_mask/` and the same for `val` and `test`. The published release has no `val`:
split it off `train`, or train with `--cfg-options val_data=None`.
"""

_base_ = "../_base_/gpu_run.py"


def images(split, **more):
    return dict(type="BiomedParseDataset", root="data/BiomedParse", split=split, **more)


task = dict(
    type="ParseTask",
    model="pretrained/biomedparse_v2",
    channels="rgb",
    loss_weights=dict(dice=1.0, bce=1.0, edge=1.0, existence=1.0),
    positive_weight=3.0,
)
train_data = dict(type="AugmentedDataset", dataset=images("train", prompts=4, absent=0.15, sentence="random"))
val_data = images("val", absent=None)
test_data = images("test", absent=None)
collate = dict(type="ParseCollator")
optimizer = dict(lr=2e-5, weight_decay=0.01)
schedule = dict(type="constant")
batch_size = 4
max_steps = 100000
clip = 5.0
num_workers = 5
checkpoint = dict(interval=2000, keep=3)
validate_interval = 2000
validate_samples = 500
work_dir = "work_dirs/biomedparse_v2_2d"
