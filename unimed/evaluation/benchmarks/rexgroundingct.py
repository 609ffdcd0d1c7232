"""ReXGroundingCT: free-text findings of chest CT as 3D masks (arXiv 2507.22030)."""

from unimed.evaluation.benchmarks.declaring import declare

declare(
    name="rexgroundingct/findings",
    task="segmentation",
    reader="RecordDataset",
    reader_options={"split": "test", "tasks": ["volume"], "to_uint8": True},
    scorer="unimed.evaluation.scorers.findings:score_findings",
    metrics=("dice", "finding_hit", "finding_instance_f1"),
    published={"Global Dice": "global_dice", "HIT rate": "hit_rate", "Instance F1": "instance_f1"},
    note="one record per finding, its sentence as phrase and question; say whether the 100 or the 300 test scans are"
    " scored. Which voxels of an instance touch is not published: those that share a face do here",
)
