"""BiomedParse: prompted masks of images, label maps of volumes, and the CVPR 2025 text-prompted challenge."""

from unimed.evaluation.benchmarks.declaring import declare

#: Modalities of the published set, as its file names begin them.
MODALITIES = ("CT", "MRI", "X-Ray", "pathology", "ultrasound", "fundus", "dermoscopy", "endoscope", "OCT")
_PUBLIC = {
    "folder": "biomedparse",
    "layout": "test.json, test/ and test_mask/ (`unimed prepare biomedparse` writes the JSON); train likewise",
    "license": "CC BY-NC-SA 4.0, and that of each source",
    "homepage": "https://huggingface.co/datasets/microsoft/BiomedParseData",
    "leaks": "split at random by image: slices of one patient may be in training and test",
}

declare(
    name="biomedparse/images",
    task="segmentation",
    reader="BiomedParseDataset",
    reader_options={"split": "test"},
    questions="unimed.data.wordings.biomedparse_targets",
    scorer="unimed.evaluation.scorers.parsing:score_parsing",
    metrics=("dice", "iou", "auroc"),
    files={"root": "."},
    train={"split": "train"},
    **_PUBLIC,
    published={"median Dice per target": "dice_median_then_mean_over_targets"},
    note="the published v1 numbers are medians over the cases of a target, averaged over targets",
)
for _modality in MODALITIES:
    declare(
        name=f"biomedparse/images_{_modality.lower().replace('-', '')}",
        task="segmentation",
        reader="BiomedParseDataset",
        reader_options={"split": "test", "modality": _modality},
        questions="unimed.data.wordings.biomedparse_targets",
        scorer="unimed.evaluation.scorers.parsing:score_parsing",
        metrics=("dice", "iou", "auroc"),
        files={"root": "."},
        train={"split": "train"},
        **_PUBLIC,
    )
_VOLUMES = {
    "samples": "ParseVolumes",
    "files": {"root": "{part}"},
    "train": {},
    "layout": "test/*.npz with imgs, gts, text_prompts (and spacing); train/ likewise",
    "license": "per source, see the homepage",
    "homepage": "https://huggingface.co/datasets/junma/CVPR-BiomedSegFM",
    "leaks": "public sources, on which published models were trained; the hidden test set of the challenge is not this",
}
declare(
    name="biomedparse/volumes",
    task="segmentation",
    reader="unimed.evaluation.scorers.label_maps:label_pairs",
    questions="unimed.io.challenge",
    scorer="unimed.evaluation.scorers.label_maps:score_folder",
    metrics=("dice", "iou", "nsd", "f1_50", "ap_50", "auroc"),
    folder="biomedparse_volumes",
    **_VOLUMES,
    note="a volume without a result is scored as empty; two empty masks follow the chosen policy",
)
declare(
    name="cvpr25/text_3d",
    task="segmentation",
    reader="unimed.evaluation.scorers.label_maps:label_pairs",
    questions="unimed.io.challenge",
    scorer="unimed.evaluation.scorers.label_maps:score_folder",
    metrics=("dice", "nsd", "f1_50"),
    folder="cvpr25",
    **_VOLUMES,
    published={"DSC": "DSC", "NSD": "NSD", "F1": "F1", "DSC_TP": "DSC_TP"},
    note='false labels cost unless compat="reference"',
)
