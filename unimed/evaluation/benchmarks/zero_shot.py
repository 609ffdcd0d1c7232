"""Zero-shot sets of UniMed-CLIP: one benchmark per set of the catalogue, its prompts made of class names."""

from unimed.data.readers.zero_shot_sets import catalog
from unimed.evaluation.benchmarks.declaring import declare

for _name, _set in catalog().items():
    declare(
        name=f"zero_shot/{_name}",
        task="classes",
        reader="unimed.data.readers.zero_shot_sets:read_set",
        reader_options={"one": _set},
        questions="labels",
        scorer="unimed.evaluation.scorers.zero_shot:evaluate_set",
        options={"one": _set},
        metrics=("top1_accuracy", "balanced_accuracy", "macro_f1", "auroc"),
        samples="ZeroShotDataset",
        samples_scorer="unimed.evaluation.scorers.choices:score_choices",
        headline="exact_match",
        files={"root": "."},
        test={"name": _name},
        row_kind="answer",
        folder=f"zero_shot/{_name}",
        layout="as its owners deliver it, see docs/unimed_clip.md",
        license="that of the owners of the set",
        homepage="https://github.com/mbzuai-oryx/UniMed-CLIP",
        leaks=_set.overlap or "",
        published={"acc": "accuracy", "auc_roc": "auc"},
        note=_set.overlap or "",
    )
