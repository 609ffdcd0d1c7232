"""Fine-tuning BiomedParse v2 on slices of your own volumes, scored in 3D while it trains; one GPU.

    python tools/convert.py --from biomedparse biomedparse_v2.ckpt pretrained/biomedparse_v2
    python tools/prepare_data.py biomedparse data/my_volumes

`data/my_volumes` holds `train/*.npz`, `val/*.npz` and `test/*.npz`; the second command writes their slices, with the
neighbours as channels, to `data/my_volumes/slices`. The published settings: ten passes, batches of eight, learning rate
1e-5 for every parameter, nothing frozen.
"""

_base_ = "../_base_/gpu_run.py"


def volumes(split):
    return dict(type="ParseVolumes", root=f"data/my_volumes/{split}")


task = dict(
    type="ParseTask",
    model="pretrained/biomedparse_v2",
    loss_weights=dict(dice=1.0, bce=1.0, edge=1.0, existence=1.0),
    positive_weight=3.0,
    batch_size=4,
)
train_data = dict(
    type="AugmentedDataset",
    swap_neighbors=True,
    dataset=dict(type="BiomedParseDataset", root="data/my_volumes/slices", prompts=4, absent=None, sentence="random"),
)
val_data = volumes("val")
test_data = volumes("test")
collate = dict(type="ParseCollator")
optimizer = dict(lr=1e-5, weight_decay=0.01)
schedule = dict(type="constant")
batch_size = 8
epochs = 10
clip = 5.0
num_workers = 5
checkpoint = dict(interval=1000)
validate_interval = 1000
validate_batches = 4
validate_samples = 20
test_batch_size = 1
work_dir = "work_dirs/biomedparse_finetune"
