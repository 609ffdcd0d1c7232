"""uMedGround in small on the sample set: LLaVA and SAM from scratch, all of it trainable, minutes on one CPU core."""

_base_ = "../_base_/sample_run.py"


def reports(split):
    return dict(type="RecordReports", path="data/sample", split=split)


task = dict(
    type="ReportGrounding",
    model=dict(type="SmallUMedGround", texts="data/sample/records/train.jsonl", box_head="laplace_mixture"),
    loss_weights=dict(box=2.0),
    max_new_tokens=160,
    batch_size=16,
)
train_data = reports("train")
val_data = reports("val")
test_data = reports("test")
collate = dict(type="GroundedCollator")
optimizer = dict(weight_decay=0.02, betas=(0.9, 0.95))
batch_size = 8
work_dir = "work_dirs/umedground_tiny"
