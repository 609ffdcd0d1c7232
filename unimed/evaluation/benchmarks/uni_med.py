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
for _name, (_task, _reader, _options) in SETS.items():
    declare(
        name=f"uni_med/{_name}",
        task=_task,
        reader=_reader,
        reader_options=_options,
        scorer="unimed.evaluation.scorers.multi_task:score_benchmarks",
        metrics=_METRICS[_task],
        published=_PUBLISHED[_task],
        note='compat="reference" scores as the published scripts do, substrings and +1 pixels included',
    )
