"""UniBiomed's smaller published mixture: 2D segmentation without RadGenome, and diseases."""

_base_ = "internvl2_5_1b_sam2_l.py"

from unimed.data.readers.unibiomed_mixture import mixture  # noqa: E402

train_data = dict(
    mixture=mixture("data/Biomed", tasks=("segmentation", "disease"), without=("RadGenome",)),
    group_by_length=4,
)
work_dir = "work_dirs/unibiomed_internvl2_5_1b_sam2_l_subset"
