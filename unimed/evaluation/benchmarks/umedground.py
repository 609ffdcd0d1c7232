"""uMedGround: medical report grounding, free running and teacher forced."""

from unimed.evaluation.benchmarks.declaring import declare
from unimed.evaluation.published.umedground import ALIASES

for _protocol in ("free", "teacher"):
    declare(
        name=f"umedground/mrg_{_protocol}",
        task="boxes",
        reader="MedicalGroundingDataset",
        reader_options={"split": "test"},
        questions="unimed.models.dialects.umedground",
        scorer="unimed.evaluation.scorers.reports:score_reports",
        options={"protocol": _protocol},
        metrics=("miou", "box_iou", "box_f1_at_50", "phrase_f1"),
        files={"path": "MS_CXR_S_{part}.pth", "images": "images"},
        train={"split": "train"},
        folder="umedground",
        layout="MS_CXR_S_test.pth and MS_CXR_S_train.pth of uMedGround, images/ with the paths in them",
        license="PhysioNet Credentialed Health Data License 1.5.0 (MS-CXR, MIMIC-CXR-JPG)",
        homepage="https://physionet.org/content/ms-cxr/",
        leaks="the ChestX-ray8 split shares 59 of 189 test patients with training; MS-CXR's shares none",
        headline="iou",
        row_kind="box",
        published=dict(ALIASES),
        note="published numbers are of the first box of each sample; the two protocols must not be compared",
    )
