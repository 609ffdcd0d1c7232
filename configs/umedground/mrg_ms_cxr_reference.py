"""MRG-MS-CXR as the released script trains it: first box only, losses summed over images, 640 px of SAM's 1024."""

_base_ = ["mrg_ms_cxr.py"]

task = dict(
    model=dict(style="published", mask_content=640, tile_fit="crop", language_box_head=True),
    language_box=1.0,
    protocol="teacher",
    compat="reference",
)
train_data = dict(
    mixture=[
        dict(
            dataset=dict(
                type="MedicalGroundingDataset",
                path="data/ReasonGro/MS_CXR/MS_CXR_S_{split}.pth",
                images="data/ReasonGro/MS_CXR/images",
                format="mrg",
                split="train",
                compat="reference",
            ),
            weight=1.0,
        )
    ]
)
val_data = dict(compat="reference")
test_data = dict(compat="reference")
work_dir = "work_dirs/umedground_ms_cxr_reference"
