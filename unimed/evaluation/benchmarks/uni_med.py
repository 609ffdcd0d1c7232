"""Uni-Med: questions, referring boxes, region names, reports and image classes, each set as its scripts score it."""

from unimed.evaluation.benchmarks.declaring import declare

_PUBLISHED = {
    "vqa": {"closed/acc_score": "closed_accuracy", "all/f1_score": "f1"},
    "refer": {"miou": "miou", "acc": "acc_at_50"},
    "identify": {"acc_score": "accuracy"},
    "caption": {"bleu_scores/bleu1": "bleu1_corpus", "rouge_scores/rouge_l": "rouge_l"},
    "cls": {"acc_score": "accuracy"},
}
_METRICS = {
    "vqa": ("exact_match", "token_f1", "bleu_1"),
    "refer": ("miou", "box_iou"),
    "identify": ("exact_match", "token_f1", "bleu_1"),
    "caption": ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor_exact", "rouge_l", "cider_d", "token_f1"),
    "cls": ("accuracy", "macro_f1"),
}
#: Set -> (task, reader, what the reader needs to be told).
SETS = {
    "slakevqa_en": ("vqa", "SlakeVQADataset", {"split": "test"}),
    "path_vqa": ("vqa", "PathVQADataset", {"split": "test"}),
    "ref_slake": ("refer", "SlakeBoxDataset", {"task": "refer", "split": "test"}),
    "ref_sa_med": ("refer", "SAMedBoxDataset", {"task": "refer", "split": "test"}),
    "invref_slake": ("identify", "SlakeBoxDataset", {"task": "identify", "split": "test"}),
    "invref_sa_med": ("identify", "SAMedBoxDataset", {"task": "identify", "split": "test"}),
    "mimic_caption": ("caption", "MimicReportDataset", {"split": "test"}),
    "medpix_single": ("caption", "MedPixDataset", {"split": "test"}),
    "medmnist_2d_derma": ("cls", "MedMnistDataset", {"split": "test"}),
    "medmnist_2d_organs": ("cls", "MedMnistDataset", {"split": "test"}),
}
_GET = {
    "slake": ("CC BY 4.0", "https://www.med-vqa.com/slake/", "test.txt and train.txt, imgs/FOLDER/"),
    "path": ("MIT", "https://github.com/UCSD-AI4H/PathVQA", "qas/test/test_qa.pkl, images/test/; train likewise"),
    "sa_med": ("per source", "https://huggingface.co/datasets/OpenGVLab/SA-Med2D-20M",
               "test/regions/MODALITY/*.json, test/images/MODALITY/*.png; train likewise"),
    "mimic": ("PhysioNet Credentialed Health Data License 1.5.0", "https://physionet.org/content/mimic-cxr-jpg/",
              "annotation.json of R2Gen, files/"),
    "medpix": ("see the homepage", "https://medpix.nlm.nih.gov", "test.csv and train.csv, images/"),
    "derma": ("CC BY-NC 4.0", "https://medmnist.com", "dermamnist_224.npz"),
    "organs": ("CC BY 4.0", "https://medmnist.com", "organsmnist_224.npz"),
}  # fmt: skip
_FILES = {
    "slake": {"root": "."},
    "path": {"annotations": "qas/{part}/{part}_qa.pkl", "image_root": "images"},
    "sa_med": {"region_dir": "{part}/regions", "image_dir": "{part}/images"},
    "mimic": {"annotations": "annotation.json", "image_root": "."},
    "medpix": {"table": "{part}.csv", "image_dir": "images"},
    "derma": {"path": "dermamnist_224.npz"},
    "organs": {"path": "organsmnist_224.npz"},
}
_LEAKS = {
    "path": "train and test share no figure, but figures of one book page are alike",
    "sa_med": "the split of Uni-Med is by image: slices of one scan are in both",
    "mimic": "R2Gen's split is the official one, by patient",
}
_HEADLINE_ROWS = {"vqa": "answer", "refer": "box", "identify": "answer", "caption": "text", "cls": "answer"}
for _name, (_task, _reader, _options) in SETS.items():
    _key = next(key for key in _FILES if key in _name)
    declare(
        name=f"uni_med/{_name}",
        task=_task,
        reader=_reader,
        reader_options=_options,
        scorer="unimed.evaluation.scorers.multi_task:score_benchmarks",
        metrics=_METRICS[_task],
        published=_PUBLISHED[_task],
        row_kind=_HEADLINE_ROWS[_task],
        headline={"cls": "exact_match", "caption": "rouge_l"}.get(_task, ""),
        files=_FILES[_key],
        train={"split": "train"},
        folder=_key,
        license=_GET[_key][0],
        homepage=_GET[_key][1],
        layout=_GET[_key][2],
        leaks=_LEAKS.get(_key, ""),
        note='compat="reference" scores as the published scripts do, substrings and +1 pixels included',
    )
