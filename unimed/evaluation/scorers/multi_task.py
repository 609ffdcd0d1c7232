"""One set of numbers per benchmark of Uni-Med, right by default, as published under `compat="reference"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unimed.evaluation.baselines import AnswerPrior, usual_box
from unimed.evaluation.published import uni_med as published
from unimed.evaluation.rows import answer_row, box_rows, text_row
from unimed.io.result import Prediction
from unimed.metrics import text
from unimed.metrics.boxes import accuracy_at, iou_matrix
from unimed.metrics.statistics import bootstrap
from unimed.structures import Sample


def task_name(sample: Sample) -> str:
    """The Uni-Med name of the task of a sample; what asks for a place that is nowhere is answered in words."""
    if sample.task.short == "refer" and all(region.box_xyxy_px is None for region in sample.regions):
        return "vqa"
    return sample.task.short


def score_benchmarks(
    samples: Sequence[Sample], predictions: Sequence[Prediction], compat: str | None = None, *, resamples: int = 200
) -> dict:
    """Numbers, tables and rows; a benchmark is one task of one source.

    Args:
        resamples: of the intervals in the tables, which draw patients; 0 leaves the tables out.

    Returns:
        {"summary": {"<benchmark>/<metric>": number}, "tables": {task: rows with intervals}, "cases": rows}. Below each
        benchmark stands the answer that looks at no image: the commonest true answer to the very same question, and for
        boxes the usual box of the phrase. It is taken from the test set itself, so it is the most such an answer gets.

    Raises:
        ValueError: another number of predictions, or an unknown `compat`.
    """
    if compat not in (None, "reference"):
        raise ValueError(f"compat {compat!r} is not known; choose 'reference' or leave it out")
    if len(samples) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(samples)} samples")
    groups: dict[str, list[dict]] = {}
    owners: dict[str, list[str]] = {}
    cases = []
    for sample, prediction in zip(samples, predictions, strict=True):
        row = row_of(sample, prediction)
        groups.setdefault(row["benchmark"], []).append(row)
        owners.setdefault(row["benchmark"], []).append(sample.patient_id or sample.sample_id)
        cases += case_rows(sample, prediction, row)
    scorers = PUBLISHED if compat == "reference" else SCORERS
    summary, tables = {}, {}
    for name, members in sorted(groups.items()):
        task = members[0]["task"]
        result = _flat(scorers[task](members))
        summary |= {f"{name}/{key}": value for key, value in result.items()} | {f"{name}/samples": len(members)}
        if resamples:
            line = {"benchmark": name, "samples": len(members)}
            blind = {"benchmark": f"{name}, answered blindly", "samples": len(members)}
            intervals = _intervals(members, scorers[task], list(result), owners[name], resamples)
            blind |= _flat(scorers[task](answered_blindly(members)))
            tables.setdefault(task, []).extend([line | intervals, blind])
    scores = {"summary": summary, "cases": cases}
    return scores | ({"tables": dict(sorted(tables.items()))} if resamples else {})


#: Words of a benchmark above which corpus metrics of every draw would take longer than the model: fewer draws.
_MANY_WORDS = 20_000


def _intervals(rows, scorer, names: Sequence[str], owners: Sequence[str], resamples: int) -> dict:
    """Metric -> its value with a 95 % interval; a draw is scored once for all metrics."""
    words = sum(len(str(row["answer_gt"]).split()) for row in rows)
    draws = max(20, min(resamples, resamples * _MANY_WORDS // max(words, 1)))
    scored: dict[bytes, dict] = {}

    def value(name: str):
        def of(index: np.ndarray) -> float:
            key = np.asarray(index).tobytes()
            if key not in scored:
                scored[key] = _flat(scorer([rows[place] for place in index]))
            return scored[key].get(name, float("nan"))

        return of

    return {name: bootstrap(value(name), len(rows), groups=owners, resamples=draws) for name in names}


def answered_blindly(rows: Sequence[Mapping]) -> list[dict]:
    """The same rows answered without the image: the commonest truth of the same question, the usual box of a phrase."""
    if rows[0]["task"] != "refer":
        prior = AnswerPrior.fit([row["question"] for row in rows], [row["answer_gt"] for row in rows])
        return [{**row, "answer_pred": prior.answer(row["question"]).lower()} for row in rows]
    phrases: dict[str, list[Mapping]] = {}
    for row in rows:
        phrases.setdefault(row["question"], []).append(row)
    answered = []
    for members in phrases.values():
        true = [_xyxy(row["gt_bbox"]) for row in members]
        sizes = [(row["height"], row["width"]) for row in members]
        for row, truth, size in zip(members, true, sizes, strict=True):
            box = tuple(float(v) for v in usual_box(true, sizes, size))
            text = published_box(box, row["width"], row["height"])
            iou = float(iou_matrix(np.array([box]), np.array([truth]))[0, 0])
            answered.append({**row, "answer": text, "answer_pred": text, "pred_box_xyxy_px": box, "miou": iou})
    return answered


def published_box(box_xyxy_px: Sequence[float], width: int, height: int) -> str:
    """A box as an answer in words, `{<x1><y1><x2><y2>}` on a scale of 0 to 100."""
    fractions = np.array(box_xyxy_px) / np.array([width, height] * 2) * 100
    return "{" + "".join(f"<{int(value)}>" for value in fractions) + "}"


def _xyxy(box_xywh: Sequence[float]) -> tuple[float, ...]:
    x, y, width, height = box_xywh
    return (x, y, x + width, y + height)


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
