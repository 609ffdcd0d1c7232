"""Reports of chest radiographs: words and stated findings. (Grounded reports stand with UniBiomed's sets.)"""

from unimed.evaluation.benchmarks.declaring import declare

for _name, _reader, _files, _about in (
    ("iu_xray", "IuReportDataset", {"annotations": "annotation.json", "image_root": "images"}, dict(
        folder="iu_xray", layout="annotation.json of R2Gen, images/CXR*/", license="CC BY-NC-ND 4.0",
        homepage="https://openi.nlm.nih.gov", leaks="split by study; a patient has one study")),
    ("mimic_cxr", "MimicReportDataset", {"annotations": "annotation.json", "image_root": "."}, dict(
        folder="mimic", layout="annotation.json of R2Gen, files/ of MIMIC-CXR-JPG",
        license="PhysioNet Credentialed Health Data License 1.5.0", homepage="https://physionet.org/content/mimic-cxr-jpg/",
        leaks="R2Gen's split is the official one, by patient; MS-CXR and many training sets hold its images")),
):  # fmt: skip
    declare(
        name=f"reports/{_name}",
        task="reports",
        reader=_reader,
        reader_options={"split": "test"},
        scorer="unimed.evaluation.scorers.chest_reports:score_chest_reports",
        metrics=("rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor_exact", "cider_d", "token_f1"),
        files=_files,
        train={"split": "train"},
        row_kind="text",
        note="findings are labeled by rules (unimed.metrics.report_labels), which are no CheXbert",
        **_about,
    )
