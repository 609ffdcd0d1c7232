"""One set of numbers per benchmark of Uni-Med, right by default, as published under `compat="reference"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unimed.evaluation.published import uni_med as published
from unimed.evaluation.rows import answer_row, box_rows, text_row
from unimed.io.result import Prediction
from unimed.metrics import text
from unimed.metrics.boxes import accuracy_at
from unimed.structures import Sample


def task_name(sample: Sample) -> str:
    """The Uni-Med name of the task of a sample; what asks for a place that is nowhere is answered in words."""
    if sample.task.short == "refer" and all(region.box_xyxy_px is None for region in sample.regions):
        return "vqa"
    return sample.task.short


def score_benchmarks(samples: Sequence[Sample], predictions: Sequence[Prediction], compat: str | None = None) -> dict:
    """{"summary": {"<benchmark>/<metric>": number}, "cases": rows}; a benchmark is one task of one source.

    Raises:
        ValueError: another number of predictions, or an unknown `compat`.
    """
    if compat not in (None, "reference"):
        raise ValueError(f"compat {compat!r} is not known; choose 'reference' or leave it out")
    if len(samples) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(samples)} samples")
    groups: dict[str, list[dict]] = {}
    cases = []
    for sample, prediction in zip(samples, predictions, strict=True):
        row = row_of(sample, prediction)
        groups.setdefault(row["benchmark"], []).append(row)
        cases += case_rows(sample, prediction, row)
    scorers = PUBLISHED if compat == "reference" else SCORERS
    summary = {}
    for name, members in sorted(groups.items()):
        result = scorers[members[0]["task"]](members)
        summary |= {f"{name}/{key}": value for key, value in _flat(result).items()} | {f"{name}/samples": len(members)}
    return {"summary": summary, "cases": cases}


def case_rows(sample: Sample, prediction: Prediction, row: Mapping) -> list[dict]:
    """What one case of a benchmark leaves behind, with its question and the truth."""
    made = {"refer": box_rows, "caption": lambda *pair: [text_row(*pair)]}.get(row["task"], lambda *p: [answer_row(*p)])
    first = {"task": row["task"], "dataset": row["benchmark"]}
    return [one | first | {"question": row["question"]} for one in made(sample, prediction)]


def row_of(sample: Sample, prediction: Prediction) -> dict:
    """What the published scripts write for one case, under their names; boxes of the truth are x, y, w, h in pixels."""
    task = task_name(sample)
    truth = next((text for role, text in sample.conversation if role == "assistant"), "")
    answer = prediction.text.replace("<unk>", "").strip()
    row = {
        "benchmark": str(sample.labels.get("benchmark") or task),
        "task": task,
        "id": sample.sample_id,
        "question": sample.conversation[0][1],
        "answer_gt": truth,
        "answer_pred": answer if task == "refer" else answer.lower(),
        "answer_type": str(sample.labels.get("answer_type") or _kind(truth)).upper(),
    }
    if sample.labels.get("choices"):
        row["choices"] = list(sample.labels["choices"])
    if task == "refer":
        height, width = sample.images[0].shape[:2]
        x1, y1, x2, y2 = next(r.box_xyxy_px for r in sample.regions if r.box_xyxy_px is not None)
        row |= {"answer": answer, "gt_bbox": (x1, y1, x2 - x1, y2 - y1), "width": width, "height": height}
        row["pred_box_xyxy_px"] = next((r.box_xyxy_px for r in prediction.regions if r.box_xyxy_px is not None), None)
        row["miou"] = _mean(one["miou"] for one in box_rows(sample, prediction))
    return row


def _kind(truth: str) -> str:
    return "closed" if truth.strip(" .").lower() in ("yes", "no") else "open"


def _mean(values) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def _pairs(rows):
    return [r["answer_pred"] for r in rows], [r["answer_gt"] for r in rows]


def score_answers(rows) -> dict[str, float]:
    """vqa and qa: exact accuracy over open and closed questions, word F1, corpus BLEU-1."""
    right = {kind: [text.exact_match(r["answer_pred"], r["answer_gt"]) for r in rows if r["answer_type"] == kind]
             for kind in ("OPEN", "CLOSED")}  # fmt: skip
    return {
        "accuracy": _mean([*right["OPEN"], *right["CLOSED"]]),
        "open_accuracy": _mean(right["OPEN"]),
        "closed_accuracy": _mean(right["CLOSED"]),
        "f1": _mean(text.token_f1(r["answer_pred"], r["answer_gt"]) for r in rows),
        "bleu1_corpus": text.bleu(*_pairs(rows))[0],
    }


def score_boxes(rows) -> dict[str, float]:
    """refer: mean IoU and share with IoU >= 0.5; an answer without a box counts as IoU 0, an additional
    box halves it."""
    ious = [row["miou"] for row in rows]
    return dict(accuracy_at(ious, (0.5,))) | {"answered": _mean(r["pred_box_xyxy_px"] is not None for r in rows)}


def score_texts(rows) -> dict[str, float]:
    """caption: corpus BLEU-1..4, METEOR (exact stage), ROUGE-L and CIDEr-D; an empty answer counts as one."""
    predicted, truth = _pairs(rows)
    values = {f"bleu{n}_corpus": value for n, value in enumerate(text.bleu(predicted, truth), 1)}
    return values | {
        "meteor_exact_corpus": text.corpus_meteor_exact(predicted, truth),
        "rouge_l": _mean(text.rouge_l(predicted, truth)),
        "cider_d": _mean(text.cider_d(predicted, truth)),
        "f1": _mean(text.token_f1(p, t) for p, t in zip(predicted, truth, strict=True)),
    }


def score_classes(rows) -> dict[str, float]:
    """cls: accuracy and macro F1 over the classes of the truth. An answer gives no scores, so there is no AUC."""
    predicted, truth = ([text.normal_form(entry) for entry in part] for part in _pairs(rows))
    scores = []
    for label in sorted(set(truth)):
        both = sum(p == t == label for p, t in zip(predicted, truth, strict=True))
        scores.append(2 * both / (predicted.count(label) + truth.count(label)))
    return {
        "accuracy": _mean(p == t for p, t in zip(predicted, truth, strict=True)),
        "macro_f1": _mean(scores),
    }


def _published_classes(rows) -> dict:
    return {"acc_score": published.identify(rows)["acc_score"]}


#: Task -> its numbers. A benchmark of a new kind is one function here.
SCORERS = {
    "qa": score_answers,
    "vqa": score_answers,
    "refer": score_boxes,
    "identify": score_answers,
    "caption": score_texts,
    "cls": score_classes,
}
PUBLISHED = {
    "qa": published.identify,
    "vqa": published.vqa,
    "refer": published.referring,
    "identify": published.identify,
    "caption": published.captions,
    "cls": _published_classes,
}


def _flat(values: Mapping, prefix: str = "") -> dict[str, float]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": float(value)}
    return flat
