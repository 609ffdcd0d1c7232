"""A likelihood instead of hypotheses without one: spread that is trained, on MS-CXR's own file and reports."""

_base_ = ["mrg_ms_cxr.py"]


def part(split):
    return dict(
        type="MedicalGroundingDataset",
        path="data/MS_CXR/MS_CXR_Local_Alignment_v1.0.0.json",
        images="data/MIMIC-CXR-JPG",
        reports="data/MIMIC-CXR/files",
        format="ms_cxr",
        split=split,
    )


task = dict(model=dict(box_head="laplace_mixture"), robustness=dict(severities=(1, 3, 5)))
train_data = dict(mixture=[dict(dataset=part("train"), weight=1.0)])
val_data = part("val")
test_data = part("test")
work_dir = "work_dirs/umedground_laplace_mixture"
