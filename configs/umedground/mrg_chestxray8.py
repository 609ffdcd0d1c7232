"""MRG-ChestX-ray8 with MedSAM: NIH's own list of boxes, split by patient (the published split shares 59 patients)."""

_base_ = ["mrg_ms_cxr.py"]


def part(split):
    return dict(
        type="MedicalGroundingDataset",
        path="data/ChestX-ray8/BBox_List_2017.csv",
        images="data/ChestX-ray8/images",
        format="chestxray8",
        split=split,
        split_fractions=(0.7, 0.1, 0.2),
    )


task = dict(model=dict(sam_weights="pretrained/medsam_vit_b.pth"))
train_data = dict(mixture=[dict(dataset=part("train"), weight=1.0)])
val_data = part("val")
test_data = part("test")
work_dir = "work_dirs/umedground_chestxray8"
