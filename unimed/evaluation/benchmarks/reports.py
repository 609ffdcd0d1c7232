"""Reports of chest radiographs. (MIMIC-CXR stands with Uni-Med's sets, grounded reports with UniBiomed's.)"""

from unimed.evaluation.benchmarks.declaring import declare

declare(
    name="reports/iu_xray",
    task="reports",
    reader="IuReportDataset",
    reader_options={"split": "test"},
    scorer="unimed.evaluation.benchmarks.declaring:score_any",
    metrics=("rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor_exact", "token_f1"),
    files={"annotations": "annotation.json", "image_root": "images"},
    train={"split": "train"},
    folder="iu_xray",
    layout="annotation.json of R2Gen, images/CXR*/",
    license="CC BY-NC-ND 4.0",
    homepage="https://openi.nlm.nih.gov",
    leaks="split by study; a patient has one study",
    row_kind="text",
)
