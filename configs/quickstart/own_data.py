"""Your own records (docs/data.md) with a small model of your own: copy this file and change the three paths.

python tools/check_data.py data/mine
python tools/new_model.py pretrained/mine --data data/mine
bash tools/dist.sh train configs/quickstart/own_data.py 1
bash tools/dist.sh test configs/quickstart/own_data.py 1
python tools/export.py configs/quickstart/own_data.py work_dirs/mine exports/mine
"""

_base_ = "../_base_/sample_run.py"

_data = "data/mine"  # holds records/train.jsonl, val.jsonl and test.jsonl
task = dict(type="GroundingTask", model="pretrained/mine", cache_images=1000, max_new_tokens=96, batch_size=16)
train_data = dict(type="RecordDataset", path=_data, split="train")
val_data = dict(type="RecordDataset", path=_data, split="val")
test_data = dict(type="RecordDataset", path=_data, split="test")
collate = dict(type="GroundedCollator")
optimizer = dict(weight_decay=0.02)
schedule = dict(warmup=50)
batch_size = 16
epochs = 10
checkpoint = dict(interval=125)
validate_interval = 250
validate_samples = 48
work_dir = "work_dirs/mine"
