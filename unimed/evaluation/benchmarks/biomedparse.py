"""BiomedParse: prompted masks of images, label maps of volumes, and the CVPR 2025 text-prompted challenge."""

from unimed.evaluation.benchmarks.declaring import declare

declare(
    name="biomedparse/images",
    task="segmentation",
    reader="BiomedParseDataset",
    reader_options={"split": "test"},
    questions="unimed.data.wordings.biomedparse_targets",
    scorer="unimed.evaluation.scorers.parsing:score_parsing",
    metrics=("dice", "iou", "auroc"),
    published={"median Dice per target": "dice_median_then_mean_over_targets"},
    note="the published v1 numbers are medians over the cases of a target, averaged over targets",
)
declare(
    name="biomedparse/volumes",
    task="segmentation",
    reader="unimed.evaluation.scorers.label_maps:label_pairs",
    questions="unimed.io.challenge",
    scorer="unimed.evaluation.scorers.label_maps:score_folder",
    metrics=("dice", "iou", "nsd", "f1_50", "ap_50", "auroc"),
    note="a volume without a result is scored as empty; two empty masks follow the chosen policy",
)
declare(
    name="cvpr25/text_3d",
    task="segmentation",
    reader="unimed.evaluation.scorers.label_maps:label_pairs",
    questions="unimed.io.challenge",
    scorer="unimed.evaluation.scorers.label_maps:score_folder",
    metrics=("dice", "nsd", "f1_50"),
    published={"DSC": "DSC", "NSD": "NSD", "F1": "F1", "DSC_TP": "DSC_TP"},
    note='false labels cost unless compat="reference"',
)
