"""Phrases and their boxes in radiographs: none, one or many."""

from unimed.evaluation.benchmarks.declaring import declare

_SCORER = "unimed.evaluation.benchmarks.declaring:score_any"
_METRICS = ("miou", "box_iou", "box_f1_at_50")

declare(
    name="boxes/ms_cxr",
    task="boxes",
    reader="PhraseGroundingDataset",
    reader_options={"split": "test", "format": "ms_cxr"},
    scorer=_SCORER,
    metrics=_METRICS,
    files={"path": "MS_CXR_Local_Alignment_v1.0.0.json", "images": "."},
    train={"split": "train"},
    folder="ms_cxr",
    layout="MS_CXR_Local_Alignment_v1.0.0.json, files/ of MIMIC-CXR-JPG",
    license="PhysioNet Credentialed Health Data License 1.5.0",
    homepage="https://physionet.org/content/ms-cxr/",
    leaks="images are those of MIMIC-CXR, whose training part holds some of them",
    row_kind="box",
    note="split by patient, 7:1:2; the published split of MedRPG is that of uMedGround's files",
)
declare(
    name="boxes/chestxray8",
    task="boxes",
    reader="PhraseGroundingDataset",
    reader_options={"split": "test", "format": "chestxray8", "by_class": True},
    scorer=_SCORER,
    metrics=_METRICS,
    files={"path": "BBox_List_2017.csv", "images": "images"},
    train={"split": "train"},
    folder="chestxray8",
    layout="BBox_List_2017.csv, images/",
    license="NIH Clinical Center: free use with citation",
    homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    leaks="published splits share patients, this one is by patient; RSNA pneumonia holds the same images",
    row_kind="box",
)
for _boxes, _what in (("all", ""), ("zero", "_zero"), ("one", "_one"), ("many", "_many")):
    declare(
        name=f"boxes/padchest_gr{_what}",
        task="boxes",
        reader="PadChestGrDataset",
        reader_options={"split": "test", "boxes": _boxes},
        scorer=_SCORER,
        metrics=_METRICS,
        files={"root": "."},
        train={"split": "train"},
        folder="padchest_gr",
        layout="grounded_reports_20240819.json, master_table.csv, PadChest_GR/*.png",
        license="research use agreement of BIMCV",
        homepage="https://bimcv.cipf.es/bimcv-projects/padchest-gr/",
        leaks="images are those of PadChest, on which models may have been trained",
        headline="false_mask_rate" if _boxes == "zero" else "",
        row_kind="presence" if _boxes == "zero" else "box",
        note="zero: sentences without a place, where pointing is an error (false_mask_rate)",
    )
