"""Scores of prediction folders: the published numbers under their published names, and ours beside them.

Published numbers keep their quirks (`unimed.evaluation.published.unibiomed`). Ours say their aggregation in their name,
come with bootstrap intervals, and count missed and superfluous masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unimed.data.readers import unibiomed_tests as evaluation_sets
from unimed.data.readers.unibiomed import NO_FINDINGS
from unimed.evaluation.cases import case_row
from unimed.evaluation.matching import matched_dice
from unimed.evaluation.published import unibiomed
from unimed.evaluation.tables import markdown_table, means_by, write_cases
from unimed.files import write_report, write_text
from unimed.io.answers import read_answer
from unimed.io.masks import load_mask
from unimed.io.read import read
from unimed.metrics.coco_captions import caption_scores
from unimed.metrics.registered import metrics_of
from unimed.metrics.statistics import bootstrap_mean
from unimed.metrics.surfaces import hausdorff, nsd
from unimed.metrics.text import exact_match
from unimed.structures import Case

#: UniBiomed's evaluation looks at no more annotations than this.
REFERENCE_FIRST = 300


@dataclass
class Scores:
    """`published` as UniBiomed writes it; `rows` one per case; `summary` our numbers (`Interval`s where they are
    means); `remarks` what was left out and why."""

    published: dict
    rows: list[dict]
    summary: dict = field(default_factory=dict)
    tables: dict[str, list[dict]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def write(self, folder: Path, command: str = "") -> str:
        """Write `scores.jsonl` (cases), `summary.json` and `summary.md`; returns the text of the last."""
        folder = Path(folder)
        write_cases(folder / "scores.jsonl", self.rows)
        write_report(folder / "summary.json", {"summary": self.summary, "published": self.published})
        parts = [f"### {name}\n\n{markdown_table(rows)}" for name, rows in self.tables.items()]
        parts.append("### all\n\n" + markdown_table([{"metric": k, "value": v} for k, v in self.summary.items()]))
        parts += [f"{remark}\n" for remark in self.remarks]
        text = "\n".join(parts + [f"`{command}`\n"] * bool(command)) + "\nResearch use only.\n"
        write_text(folder / "summary.md", text)
        return text


def score_segmentation(cases: Sequence[Case], out: Path, compat: str | None = None) -> Scores:
    """Masks of `segment_images` against the truth.

    Args:
        compat: "reference" looks at the first 300 annotations only, leaves cases without truth pixels out and brings
            the truth to the size of the prediction by bilinear interpolation, as published. By default every
            annotation counts and the truth is compared at the size of the image.
    """
    rows, remarks = [], []
    if compat == "reference":
        cases = cases[:REFERENCE_FIRST]
    resized = missing = 0
    for case in cases:
        path = evaluation_sets.within(out, case.inputs["out"])
        if not path.is_file():
            missing += 1
            continue
        predicted = load_mask(path)[0]
        truth = load_mask(case.inputs["truth"], compat=compat)[0]
        if truth.shape != predicted.shape:
            resized += 1
            if compat == "reference":
                truth = _bilinear(case.inputs["truth"], predicted.shape)
            else:
                truth = load_mask(case.inputs["truth"], shape=predicted.shape, resize=True)[0]
        rows.append(_mask_row(case.name, case.name, case.inputs["phrase"], predicted, truth))
    if resized:
        remarks.append(f"{resized} masks of the truth have another size than their image and were resized")
    return _mask_scores(rows, remarks, missing, {row["case"]: _item(row) for row in rows})


def score_volumes(cases: Sequence[Case], out: Path, compat: str | None = None) -> Scores:
    """Masks of `segment_volumes` against the truth, each volume as one.

    Args:
        compat: "reference" scores only the slices that have a mask file, so that false positives on all others are
            free, brings the truth to the size of the prediction by bilinear interpolation and leaves expressions
            without truth out, as published. By default every slice counts.
    """
    rows, remarks, missing, resized = [], [], 0, set()
    for case in cases:
        folder = evaluation_sets.within(out, case.inputs["out"])
        names = [path.name for path in case.inputs["slices"]]
        if compat == "reference":
            names = [name for name in case.inputs["truth"]]
        if not all((folder / name).is_file() for name in names):
            missing += 1
            continue
        predicted = np.stack([load_mask(folder / name)[0] for name in names])
        truth = []
        for name, plane in zip(names, predicted, strict=True):
            path = case.inputs["truth"].get(name)
            mask = load_mask(path, compat=compat)[0] if path else np.zeros_like(plane)
            if mask.shape != plane.shape:
                resized.add(case.name)
                if compat == "reference":
                    mask = _bilinear(path, plane.shape)
                else:
                    mask = load_mask(path, shape=plane.shape, resize=True)[0]
            truth.append(mask)
        truth = np.stack(truth)
        row = _mask_row(case.name, case.inputs["volume"], case.inputs["phrase"], predicted, truth)
        rows.append(row | {"volume": case.inputs["volume"]} | _distances(predicted, truth, remarks))
    if resized:
        way = "by bilinear interpolation, as published" if compat == "reference" else "to the nearest pixel"
        remarks.append(f"the truth of {len(resized)} volumes has another size than its slices and was resized {way}")
    table: dict = {}
    for row in rows:
        of_volume = table.setdefault(row["volume"], {})
        if row["truth_voxels"] or compat != "reference":  # the reference leaves an expression without truth out
            of_volume[row["expression"]] = {k: v for k, v in _item(row).items() if k != "exp"}
    return _mask_scores(rows, remarks, missing, table, group="volume")


def _mask_row(case: str, patient: str, expression: str, predicted: np.ndarray, truth: np.ndarray) -> dict:
    values = {name: one(predicted, truth) for name, one in metrics_of("mask").items()}
    counts = {"truth_voxels": int(truth.sum()), "predicted_voxels": int(predicted.sum())}
    row = case_row(case, "mask", patient=patient, task="referring", target=expression.lower(), **values, **counts)
    return row | {"present": bool(truth.any()), "expression": expression}


def _distances(predicted: np.ndarray, truth: np.ndarray, remarks: list[str]) -> dict[str, float]:
    """Surface scores in voxels (pictures of slices carry no spacing): ours, and those of UniBiomed's 3D script."""
    published = unibiomed.volume_scores(predicted, truth)
    found = {"published_hd95_vox": published["hd95"], "published_nsd_2vox": published["nsd"]}
    try:
        found["hd95_vox"] = hausdorff(predicted, truth, (1, 1, 1))
        found["nsd_2vox"] = nsd(predicted, truth, (1, 1, 1), 2.0)
    except ImportError as error:
        if str(error) not in remarks:
            remarks.append(str(error))
    return found


def _item(row: Mapping) -> dict:
    """A case as published: nothing where there is no truth."""
    if not row["truth_voxels"]:
        return {}
    return {"dice": row["dice"], "IoU": row["iou"], "exp": row["expression"]}


def _mask_scores(rows, remarks, missing: int, items: dict, group: str = "case") -> Scores:
    counted = [row for row in rows if row["truth_voxels"]]
    mean = unibiomed.segmentation_table(counted) if counted else {}
    if missing:
        remarks.append(f"{missing} cases have no prediction and are in no mean")
    summary: dict = {"cases": len(rows), "cases_without_prediction": missing}
    tables = {}
    if rows:
        groups = [row[group] for row in rows]
        tables["per target"] = means_by(rows, "expression", list(metrics_of("mask")), group=group)
        values = [row["dice"].value for row in tables["per target"] if not np.isnan(row["dice"].value)]
        summary |= {
            "dice_mean_over_cases": bootstrap_mean([row["dice"] for row in rows], groups=groups),
            "iou_mean_over_cases": bootstrap_mean([row["iou"] for row in rows], groups=groups),
            "dice_mean_over_targets": float(np.mean(values)) if values else float("nan"),
            "absent_in_truth": sum(not row["truth_voxels"] for row in rows),
            "predicted_on_absent": sum(not row["truth_voxels"] and row["predicted_voxels"] > 0 for row in rows),
            "missed": sum(row["truth_voxels"] > 0 and not row["predicted_voxels"] for row in rows),
        }
        for name in ("hd95_vox", "nsd_2vox", "published_hd95_vox", "published_nsd_2vox"):
            if any(name in row for row in rows):
                # A missed or superfluous object is infinitely far away: the median still says something then.
                values = [row[name] for row in counted if not np.isnan(row.get(name, np.nan))]
                summary[f"{name}_median_over_cases"] = float(np.median(values)) if values else float("nan")
    return Scores({"mean": mean} | items, rows, summary, tables, remarks)


def score_answers(
    predictions: Path,
    json_file: Path,
    masks: Path | None = None,
    *,
    kind: str,
    java: bool | None = None,
    spice: bool = False,
    only: set[str] | None = None,
) -> Scores:
    """Prediction files against the truth of their set.

    Args:
        kind: "grg" and "medtrinity" (captions), "gvqa" and "disease" (answers), "region" (what a region is).
        predictions: folder of `<image>.json`.
        json_file: COCO-like test file, or the `test_parse.json` of RadGenome.
        masks: folder of the true masks; None leaves masks out.
        java, spice: see `caption_scores`.
        only: names of predictions to score; all of the test file if None.

    Raises:
        FileNotFoundError, TreeError: the test file, or a true mask, cannot be read.
    """
    truth = _truth(kind, Path(json_file))
    rows, remarks, predicted, true = [], [], [], []
    for name, entry in truth.items():
        if only is not None and name not in only:
            continue
        row = case_row(name, "text" if kind in ("grg", "medtrinity") else "answer", task=kind)
        row |= {"predicted": None, "truth": entry["text"]}
        try:
            answer = read_answer(evaluation_sets.within(predictions, f"{name}.json"))
        except FileNotFoundError:
            answer = None
        if masks is not None:
            found = answer["pred_masks"] if answer else []
            real = [load_mask(evaluation_sets.within(masks, file))[0] for file in entry["mask_files"] if file]
            # An entry without findings has no mask file: nothing is there.
            real += [np.zeros_like(found[0])] * sum(not file for file in entry["mask_files"]) if found else []
            found = [m for m in found if all(m.shape == r.shape for r in real)] if real else found
            row["dice_matched"] = unibiomed.matched_mean(found, real)
            row["dice"] = matched_dice(found, real)
        if answer is not None:
            row["predicted"] = answer["caption"]
            # Published scores leave out images with another number of annotations than answers.
            if entry["text"] is not None and entry["count"] == 1:
                predicted.append(answer["caption"])
                true.append(entry["text"])
                row |= _word_scores(kind, answer["caption"], entry["text"])
        rows.append(row)
    missing = sum(row["predicted"] is None for row in rows)
    if missing:
        remarks.append(f"{missing} of {len(rows)} images have no prediction file; their masks count as 0")
    published: dict = {}
    summary: dict = {"cases": len(rows), "cases_without_prediction": missing}
    if kind in ("gvqa", "disease", "region") and predicted:
        right = [row for row in rows if "correct_published" in row]
        published["Accuracy"] = sum(row["correct_published"] for row in right) / (len(right) + 1e-6)
        summary["accuracy_exact_words_mean_over_cases"] = bootstrap_mean([row["correct"] for row in right])
        summary["accuracy_published_mean_over_cases"] = bootstrap_mean([row["correct_published"] for row in right])
    if kind != "disease" and predicted:
        scores, notes = caption_scores(predicted, true, spice=spice, java=java, compat="reference")
        published |= scores
        remarks += notes
        ours = (
            dict(scores)
            if java is False
            else caption_scores(predicted, true, java=False)[0]
            | {name: value for name, value in scores.items() if name in ("METEOR", "SPICE")}
        )
        summary |= {f"{name}_of_corpus": value for name, value in ours.items()}
    if masks is not None and rows:
        published["mDice"] = float(np.mean([row["dice_matched"] for row in rows]))
        summary["dice_matched_pairs_mean_over_images"] = bootstrap_mean([row["dice_matched"] for row in rows])
        summary["dice_all_masks_mean_over_images"] = bootstrap_mean([row["dice"] for row in rows])
    return Scores(published, rows, summary, {}, remarks)


def published_text(published: Mapping[str, float]) -> str:
    """The lines UniBiomed's metric scripts leave beside a prediction folder."""
    lines = [f"{name}: {value:.3f}" for name, value in published.items() if name != "mDice"]
    if "mDice" in published:
        lines.append(f"Mean Dice (mDice) across all images: {published['mDice']:.3f}")
    return "\n".join(lines) + "\n"


def write_region_results(predictions: Path, scores: Scores) -> Path:
    """All region answers in one file beside their folder, the accuracy in its name, as UniBiomed has it."""
    accuracy = scores.published.get("Accuracy", float("nan"))
    rows = [{"image_id": row["case"], "caption": row["predicted"], "gt": row["truth"]} for row in scores.rows]
    for old in predictions.parent.glob(f"{predictions.name}_accuracy_*.json"):
        old.unlink()
    return write_report(predictions.with_name(f"{predictions.name}_accuracy_{accuracy:.3f}.json"), {"results": rows})


def _word_scores(kind: str, predicted: str, true: str) -> dict:
    if kind == "region":
        short = unibiomed.short_region
        published = unibiomed.region_correct(short(predicted), short(true))
    elif kind in ("gvqa", "disease"):
        predicted = predicted.lower() if kind == "disease" else predicted
        published = true in predicted
    else:
        return {}
    return {"correct_published": float(published), "correct": float(exact_match(predicted, true))}


def _truth(kind: str, path: Path) -> dict[str, dict]:
    """Name of a prediction -> text, mask files and number of annotations."""
    content = evaluation_sets.read_json(path)
    if "annotations" not in content:
        parsed = evaluation_sets.parse_names(content)
        named = [
            (
                parsed[identifier],
                {
                    "caption": _report(entry),
                    # Where nothing is found, nothing is masked.
                    "mask_file": None if NO_FINDINGS in entry["abnormality"].lower() else entry.get("mask_file"),
                    "abnormality": entry["abnormality"].lower(),
                },
            )
            for identifier, entry in content.items()
        ]
    else:
        entries = evaluation_sets.annotations_of(path)
        key = "mask_file" if kind == "region" else "file_name"
        names = evaluation_sets.named_once(entry[key] for entry in entries)
        named = [(names[entry[key]], entry) for entry in entries]
    table: dict[str, dict] = {}
    for name, entry in named:
        known = table.setdefault(name, {"text": None, "mask_files": [], "count": 0})
        known["count"] += 1
        known["text"] = known["text"] or _text(kind, entry)
        if "mask_file" in entry:
            known["mask_files"].append(entry["mask_file"])
    return table


def _report(entry: Mapping) -> str:
    """What the model is trained to answer for an entry of RadGenome."""
    return f"{entry['abnormality']}. {entry.get('report', '')}".lower().strip()


def _text(kind: str, entry: Mapping) -> str | None:
    if kind == "gvqa":
        return f"{entry['abnormality']}."
    if kind == "disease":
        return f"{evaluation_sets.sentence_of(entry, 'raw', 'sent')}.".lower()
    if kind == "region":
        return evaluation_sets.region_truth(entry)
    return entry.get("caption")


def _bilinear(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A mask resized by bilinear interpolation of its values and cut above 0: it grows by up to one pixel."""
    mask = read(path)[0]
    values = (mask if mask.ndim == 2 else mask[..., 0]).astype(np.float64)
    for axis, size in enumerate(shape):
        place = np.clip((np.arange(size) + 0.5) * values.shape[axis] / size - 0.5, 0, values.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, values.shape[axis] - 1)
        weight = np.expand_dims(place - low, 1 - axis)
        values = values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
    return np.rint(values) > 0
