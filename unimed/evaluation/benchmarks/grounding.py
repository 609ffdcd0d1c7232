"""Grounded answers of our own records: masks, boxes, presence, questions, classes and captions in one set."""

from unimed.evaluation.benchmarks.declaring import declare

declare(
    name="unimed/records",
    task="grounding",
    reader="RecordDataset",
    reader_options={"split": "test"},
    files={"path": "."},
    train={"split": "train"},
    layout="records/test.jsonl and records/train.jsonl, see docs/data.md",
    scorer="unimed.evaluation.scorers.grounding:score_grounding",
    metrics=("dice", "iou", "miou", "auroc", "exact_match", "bleu_4", "rouge_l", "cider_d", "meteor_exact"),
)
declare(
    name="unimed/any",
    task="grounding",
    reader="RecordDataset",
    reader_options={"split": "test"},
    files={"path": "."},
    train={"split": "train"},
    layout="records/test.jsonl and records/train.jsonl, see docs/data.md",
    scorer="unimed.evaluation.benchmarks.declaring:score_any",
    metrics=("dice", "iou", "miou", "auroc", "exact_match", "rouge_l", "token_f1"),
    note="rows of whatever the samples hold, see unimed.evaluate",
)
