"""Masks of volumes by prompt: findings of reports, tumors and organs."""

from unimed.evaluation.benchmarks.declaring import declare

_SCORER = "unimed.evaluation.benchmarks.declaring:score_any"
_METRICS = ("dice", "iou")
#: Subset of TotalSegmentator -> names; "" is all of them.
TOTAL = {
    "": None,
    "_abdomen": ("liver", "spleen", "pancreas", "stomach", "gallbladder", "kidney_left", "kidney_right", "duodenum",
                 "adrenal_gland_left", "adrenal_gland_right", "urinary_bladder", "colon", "small_bowel"),
    "_thorax": ("heart", "trachea", "esophagus", "lung_upper_lobe_left", "lung_lower_lobe_left",
                "lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
    "_vessels": ("aorta", "inferior_vena_cava", "portal_vein_and_splenic_vein", "superior_vena_cava",
                 "pulmonary_vein", "iliac_artery_left", "iliac_artery_right"),
    "_spine": (*(f"vertebrae_L{n}" for n in range(1, 6)), *(f"vertebrae_T{n}" for n in range(1, 13)), "sacrum"),
}  # fmt: skip
DECATHLON = (
    "Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task04_Hippocampus", "Task05_Prostate", "Task06_Lung",
    "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen", "Task10_Colon",
)  # fmt: skip

declare(
    name="masks/rexgroundingct",
    task="segmentation",
    reader="ReXGroundingCtDataset",
    reader_options={"split": "test"},
    scorer="unimed.evaluation.scorers.findings:score_findings",
    metrics=("dice", "finding_hit", "finding_instance_f1"),
    published={"Global Dice": "global_dice", "HIT rate": "hit_rate", "Instance F1": "instance_f1"},
    files={"root": "."},
    train={"split": "train"},
    folder="rexgroundingct",
    layout="dataset.json, images/NAME.nii.gz (of CT-RATE), segmentations/NAME.nii.gz",
    license="CC BY-NC-SA 4.0",
    homepage="https://huggingface.co/datasets/rajpurkarlab/ReXGroundingCT",
    leaks="scans are those of CT-RATE, on which models may have been trained",
    row_kind="instances",
    note="the public test part changed from 100 to 300 scans: say which; masks of the challenge's test are hidden. "
    "Which voxels of an instance touch is not published: those that share a face do here",
)
for _task in DECATHLON:
    declare(
        name=f"masks/msd_{_task.split('_')[1].lower()}",
        task="segmentation",
        reader="DecathlonDataset",
        reader_options={"split": "test"},
        scorer=_SCORER,
        metrics=_METRICS,
        files={"root": "."},
        train={"split": "train"},
        folder=f"msd/{_task}",
        layout="dataset.json, imagesTr/, labelsTr/",
        license="CC BY-SA 4.0",
        homepage="http://medicaldecathlon.com",
        leaks="labels of its test part are not public: test is a fifth of the training part, by the hash of the name; "
        "TotalSegmentator, CVPR 2025 and most universal models were trained on the whole training part",
        row_kind="mask",
    )
for _subset, _names in TOTAL.items():
    declare(
        name=f"masks/totalsegmentator{_subset}",
        task="segmentation",
        reader="TotalSegmentatorDataset",
        reader_options={"split": "test", **({} if _names is None else {"names": _names})},
        scorer=_SCORER,
        metrics=_METRICS,
        files={"root": "."},
        train={"split": "train"},
        folder="totalsegmentator",
        layout="meta.csv, NAME/ct.nii.gz, NAME/segmentations/*.nii.gz",
        license="CC BY 4.0",
        homepage="https://zenodo.org/records/10047292",
        leaks="masks were made with the help of the model that bears the name of the set",
        row_kind="mask",
    )
