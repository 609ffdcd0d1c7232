"""UniBiomed: segmentation of 2D and 3D sets, grounded reports, answers and disease recognition, captions, regions."""

from unimed.evaluation.benchmarks.declaring import declare

_SCORERS = "unimed.evaluation.scorers.prediction_folders"
_READERS = "unimed.data.readers.unibiomed_tests"
_CAPTIONS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")
_COCO = {"Bleu_1": "bleu_1", "Bleu_2": "bleu_2", "Bleu_3": "bleu_3", "Bleu_4": "bleu_4", "ROUGE_L": "rouge_l",
         "CIDEr": "cider_d"}  # fmt: skip

_PUBLIC = {
    "layout": "test.json (or meta_test.json, test_parse.json) with test/ and test_mask/, as UniBiomed publishes it",
    "license": "per source, see the homepage",
    "homepage": "https://huggingface.co/datasets/Luffy503/UniBiomed",
    "leaks": "2D sets are split by image at random in part: slices of one patient may be in training and test",
}
declare(
    name="unibiomed/seg2d",
    task="segmentation",
    reader=f"{_READERS}:segmentation_cases",
    questions=_READERS,
    scorer=f"{_SCORERS}:score_segmentation",
    metrics=("dice", "iou"),
    samples="BiomedDataset",
    files={"root": "."},
    test={"split": "test"},
    train={"split": "train"},
    folder="unibiomed_seg2d",
    **_PUBLIC,
    published={"mean_dice": "dice_mean_over_cases", "mean_iou": "iou_mean_over_cases"},
    note='compat="reference" looks at the first 300 annotations and leaves those without truth out',
)
declare(
    name="unibiomed/seg3d",
    task="segmentation",
    reader=f"{_READERS}:volume_cases",
    questions=_READERS,
    scorer=f"{_SCORERS}:score_volumes",
    metrics=("dice", "iou", "nsd", "hausdorff_95_mm"),
    samples="BiomedVolumeDataset",
    files={"root": "."},
    test={"split": "test"},
    train={"split": "train"},
    folder="unibiomed_seg3d",
    **_PUBLIC,
    published={"mean_dice": "dice_mean_over_cases", "hd95": "hd95_vox_median_over_cases"},
    note='compat="reference" scores slices with a mask file only; its hd95 and nsd are of regions, in voxels',
)
#: Benchmark -> data set of samples, its arguments, kind of the rows of its headline.
_SAMPLES = {
    "grg": ("RadGenomeDataset", {}, "text"),
    "gvqa": ("RadGenomeDataset", {"kind": "vqa"}, "answer"),
    "disease": ("BiomedDataset", {"kind": "disease"}, "text"),
    "medtrinity": ("MedTrinityDataset", {}, "text"),
    "region": ("BiomedDataset", {"kind": "region"}, "text"),
}
for _name, _task, _reader, _metrics, _published in (
    ("grg", "reports", "parse_cases", (*_CAPTIONS, "dice"), _COCO | {"mDice": "dice_matched_pairs_mean_over_images"}),
    ("gvqa", "answers", "parse_cases", (*_CAPTIONS, "exact_match", "dice"), _COCO | {"Accuracy": "exact_match"}),
    ("disease", "answers", "disease_cases", ("exact_match", "dice"), {"Accuracy": "exact_match"}),
    ("medtrinity", "captions", "caption_cases", _CAPTIONS, _COCO),
    ("region", "regions", "region_cases", (*_CAPTIONS, "exact_match"), _COCO | {"Accuracy": "exact_match"}),
):
    declare(
        name=f"unibiomed/{_name}",
        task=_task,
        reader=f"{_READERS}:{_reader}",
        questions=_READERS,
        scorer=f"{_SCORERS}:score_answers",
        options={"kind": _name},
        metrics=_metrics,
        samples=_SAMPLES[_name][0],
        files={"root": "."},
        test={"split": "test", **_SAMPLES[_name][1]},
        train={"split": "train", **_SAMPLES[_name][1]},
        folder=f"unibiomed_{_name}",
        headline="rouge_l",
        row_kind=_SAMPLES[_name][2],
        **_PUBLIC,
        published=_published,
        note="published accuracy takes a substring for the answer; published mDice leaves masks without a partner out",
    )
