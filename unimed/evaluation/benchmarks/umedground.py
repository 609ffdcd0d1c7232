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
        published=dict(ALIASES),
        note="published numbers are of the first box of each sample; the two protocols must not be compared",
    )
