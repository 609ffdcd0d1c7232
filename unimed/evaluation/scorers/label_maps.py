"""Scores of segmented volumes against their truth, file by file: `tools/score_volumes.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unimed.data.wordings.biomedparse_targets import named_in
from unimed.evaluation.cases import case_row
from unimed.evaluation.published.cvpr25 import score_instances, score_semantic
from unimed.evaluation.tables import markdown_table, means_by, write_cases
from unimed.files import write_report, write_text
from unimed.geometry import Geometry, GeometryError, align
from unimed.io.challenge import Prompts, ReadError, read_labels, read_prompts
from unimed.io.npz import members, names_in
from unimed.io.read import read
from unimed.io.slices import choose_axis
from unimed.io.windows import modality_of
from unimed.metrics.instances import components, instance_scores, pool_instances
from unimed.metrics.masks import EMPTY_POLICIES, dice, iou
from unimed.metrics.presence import presence_scores
from unimed.metrics.surfaces import nsd

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".npz")
#: Parts of names that tell image, truth and result of one case apart.
ROLES = (".img", ".gt", ".seg")


@dataclass
class VolumeScores:
    """Rows per (volume, target), per instance volume and per challenge volume, what went wrong, and what was done
    to results in another grid."""

    targets: list[dict] = field(default_factory=list)
    instances: list[dict] = field(default_factory=list)
    challenge: list[dict] = field(default_factory=list)
    presence: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def case_name(path: Path) -> str:
    """What image, truth and result of one case share in their names."""
    name = path.name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    for role in ROLES:
        name = name.removesuffix(role)
    return name


def score_folder(
    predictions: str | Path,
    truths: str | Path,
    *,
    prompts: str | Path | None = None,
    tolerances_mm: Sequence[float] = (1.0, 2.0),
    thresholds: Sequence[float] = (0.5, 0.75),
    empty: str = "ignore",
    compat: str | None = None,
    surfaces: bool = True,
    only: str | None = None,
) -> VolumeScores:
    """Compare every truth with the result of its name.

    A volume without a result is scored as if nothing had been found, and named as a problem.

    Args:
        predictions: folder of `NAME.npz` (`segs`, `existence`) or `NAME.nii.gz`, as `demo_parse3D.py` writes them; the
            presence of targets is taken from the NPZ or from `NAME.json`.
        truths: folder of NPZ (`gts`), NIfTI or NRRD label maps.
        prompts: JSON table for all volumes; else the truth's or the result's own.
        empty: what a target scores that is neither there nor predicted, see `masks.EMPTY_POLICIES`.
        compat: of the challenge scoring, see `challenge.score_semantic`.
        surfaces: compute NSD (needs MONAI). only: beginning of the case names to score.

    Raises:
        FileNotFoundError: a folder is missing or holds no truth. ValueError: unknown policy.
    """
    if empty not in EMPTY_POLICIES:
        raise ValueError(f"unknown policy {empty!r}; known are {', '.join(EMPTY_POLICIES)}")
    pairs = label_pairs(predictions, truths)
    table = read_prompts(prompts) if prompts else None
    scores, by_number = VolumeScores(), ""
    for name, (path, result) in pairs.items():
        if only and not name.startswith(only):
            continue
        try:
            truth, spacing, grid = _labels(path)
            predicted, existence = np.zeros(truth.shape, np.int32), None
            if result is None:
                scores.problems.append(f"{name}: no result in {predictions}; scored as empty")
            else:
                predicted, existence = _labels(result)[0::2], _existence(result)
                predicted, resampled = _in_grid_of_truth(result, *predicted, truth, grid)
                if resampled:
                    scores.remarks.append(f"{name}: the result has another grid; compared by nearest labels")
            named = table or _names_in(path)
            own = _names_in(result) if result is not None else None
            asked = named or own or Prompts({int(v): (f"label {v}",) for v in np.unique(truth) if v})
            if named and own and not named.instances and compat is None:
                predicted, existence, remark = _by_their_names(predicted, existence, own, named)
                scores.remarks += [f"{name}: {remark}"] if remark else []
            elif own and not named and not by_number:
                by_number = "the truth does not name its labels: those of results are compared by number; --prompts"
                scores.remarks.append(f"{by_number} tells what they are")
        except (ReadError, FileNotFoundError) as error:
            scores.problems.append(f"{name}: {error}")
            continue
        modality = modality_of(name) or "unknown"
        options = dict(spacing=spacing if surfaces else None, tolerances=tolerances_mm)
        if asked.instances:
            _score_instances(scores, name, modality, predicted, truth, thresholds, compat)
        else:
            _score_targets(scores, name, modality, predicted, truth, asked, existence, empty, compat, **options)
    return scores


def label_pairs(predictions: str | Path, truths: str | Path) -> dict[str, tuple[Path, Path | None]]:
    """Case name -> (file of the truth, file of the result or None), for every truth.

    Raises:
        FileNotFoundError: a folder is missing or holds no truth.
    """
    results = _by_name(Path(predictions), "result")
    return {name: (path, results.get(name)) for name, path in _by_name(Path(truths), None).items()}


def summarize(scores: VolumeScores, out: str | Path, *, command: str, empty: str, compat: str | None = None) -> str:
    """Write `cases.jsonl`, `scores.json` and `scores.md`; returns the text of the last."""
    out, parts, summary = (
        Path(out),
        [],
        {"problems": scores.problems, "remarks": scores.remarks},
    )
    summary["empty_policy"] = EMPTY_POLICIES[empty]
    if scores.targets:
        metrics = [key for key in scores.targets[0] if key.startswith(("dice", "iou", "nsd"))]
        parts += ["## Targets", markdown_table(means_by(scores.targets, ("modality", "target"), metrics))]
        parts += ["## Modalities", markdown_table(means_by(scores.targets, "modality", metrics))]
        counts = [{
            "predicted_on_absent": sum(r["predicted_voxels"] > 0 and not r["truth_voxels"] for r in scores.targets),
            "missed": sum(r["truth_voxels"] > 0 and not r["predicted_voxels"] for r in scores.targets),
            "both_empty": sum(not r["truth_voxels"] and not r["predicted_voxels"] for r in scores.targets),
            "pairs": len(scores.targets),
        }]  # fmt: skip
        parts += [f"Empty masks: {EMPTY_POLICIES[empty]}. One empty mask against a filled one scores 0.\n"]
        parts += [markdown_table(counts)]
        summary |= {"targets": means_by(scores.targets, ("modality", "target"), metrics), "counts": counts[0]}
    if scores.presence:
        rows = []
        for level in ("volume", "slice"):
            chosen = [row for row in scores.presence if row["level"] == level]
            if chosen:
                values = presence_scores([r["probability"] for r in chosen], [r["present"] for r in chosen])
                rows.append({"level": level, **values})
        parts += ["## Existence", markdown_table(rows)]
        summary["existence"] = rows
    if scores.instances:
        thresholds = sorted({int(k[3:]) / 100 for k in scores.instances[0] if k.startswith("f1_")})
        metrics = [key for key in scores.instances[0] if key.startswith(("f1_", "ap_", "dice_matched_"))]
        pooled = pool_instances(scores.instances, thresholds)
        parts += [
            "## Instances",
            markdown_table(means_by(scores.instances, "modality", metrics)),
            markdown_table([pooled]),
        ]
        summary |= {"instances": means_by(scores.instances, "modality", metrics), "instances_pooled": pooled}
    if scores.challenge:
        rule = "false labels cost nothing, as published" if compat == "reference" else "false labels score 0"
        metrics = [key for key in ("DSC", "NSD", "F1", "DSC_TP") if any(key in row for row in scores.challenge)]
        table = means_by(scores.challenge, "modality", metrics)
        parts += [f"## Challenge scoring ({rule})", markdown_table(table)]
        summary["challenge"] = {"rule": rule, "rows": table}
    parts += [f"problem: {problem}" for problem in scores.problems]
    parts += [f"remark: {remark}" for remark in scores.remarks]
    text = "\n".join([*parts, f"\n`{command}`", "Research use only.\n"])
    write_cases(out / "cases.jsonl", [*scores.targets, *scores.instances, *scores.challenge])
    write_report(out / "scores.json", summary)
    write_text(out / "scores.md", text)
    return text


def _score_targets(
    scores, name, modality, predicted, truth, asked: Prompts, existence, empty, compat, spacing, tolerances
):
    axis = choose_axis(truth.shape)
    slices = np.moveaxis(truth, axis, 0).reshape(truth.shape[axis], -1)
    for label, text in asked.first().items():
        known = named_in(text)
        found, there = predicted == label, truth == label
        line = case_row(
            name,
            "mask",
            modality=modality,
            task="volume",
            target=known["target"] if known else text,
            dice=dice(found, there, empty=empty),
            iou=iou(found, there, empty=empty),
            truth_voxels=int(there.sum()),
            predicted_voxels=int(found.sum()),
            present=bool(there.any()),
            label=label,
        )
        if spacing is not None:
            values = nsd(found, there, spacing, list(tolerances), empty=empty)
            line |= {f"nsd_{t:g}mm": value for t, value in zip(tolerances, values, strict=True)}
        scores.targets.append(line)
        if existence is not None and label in existence:
            per_slice = existence[label]
            scores.presence.append(
                {"level": "volume", "probability": float(per_slice.max()), "present": bool(there.any())}
            )
            if len(per_slice) == len(slices):
                scores.presence += [
                    {"level": "slice", "probability": float(p), "present": bool(t)}
                    for p, t in zip(per_slice, (slices == label).any(1), strict=True)
                ]
    official = score_semantic(predicted, truth, list(asked.texts), spacing_mm=spacing, compat=compat)
    scores.challenge.append(
        case_row(name, "challenge", modality=modality, task="volume", DSC=official["DSC"])
        | ({"NSD": official["NSD"]} if "NSD" in official else {})
        | {"false_labels": len(official["false_labels"])}
    )


def _score_instances(scores, name, modality, predicted, truth, thresholds, compat):
    split = predicted if len(np.unique(predicted[predicted > 0])) > 1 else components(predicted > 0)
    found = instance_scores(split, truth, thresholds)
    scores.instances.append(case_row(name, "instances", modality=modality, task="volume", **found))
    official = score_instances(predicted, truth, compat=compat)
    scores.challenge.append(
        case_row(name, "challenge", modality=modality, task="volume", F1=official["F1"], DSC_TP=official["DSC_TP"])
    )


def _by_name(folder: Path, role: str | None) -> dict[str, Path]:
    """Case name -> file. Of several results of one case the NPZ is taken: it alone holds the existence per slice."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
            if path.name.endswith("-instances.nii.gz") and role:
                continue
            if role is None and path.name.lower().endswith(".img.npz"):
                continue  # the image of a challenge case, beside its NAME.gt.npz
            name = case_name(path)
            if name in found and found[name].parent != path.parent:
                raise ValueError(f"{found[name]} and {path} have one name; which of them is {name}?")
            if name not in found or path.suffix == ".npz":
                found[name] = path
    if not found and role is None:
        raise FileNotFoundError(f"{folder}: no label map in it; known are {', '.join(SUFFIXES)}")
    return found


def _in_grid_of_truth(path: Path, labels: np.ndarray, grid: Geometry | None, truth: np.ndarray, target):
    """(labels at the same places in the patient as the truth, whether they were resampled).

    Formats that carry no directions (NPZ) are compared voxel by voxel, which needs the same shape.
    """
    if grid is None or target is None:
        if labels.shape != truth.shape:
            raise ReadError(f"{path}: shape {labels.shape}, the truth has {truth.shape}")
        return labels, False
    try:
        return align(labels, grid, target, truth.shape, resample=True)
    except GeometryError as error:
        raise ReadError(f"{path}: not in the grid of the truth: {error}") from error


def _labels(path: Path) -> tuple[np.ndarray, tuple[float, ...] | None, Geometry | None]:
    """Labels, spacing in mm along their axes, and the grid where the format carries one."""
    if path.suffix == ".npz":
        return *read_labels(path), None
    array, geometry = read(path)
    if array.dtype.kind not in "iub":
        if array.dtype.kind != "f" or (array != np.rint(array)).any():
            raise ReadError(f"{path}: a label map holds whole numbers, found {array.dtype}")
        array = array.astype(np.int32)
    return array, geometry.spacing if geometry.is_physical else None, geometry


def _names_in(path: Path) -> Prompts | None:
    """What the labels of a file are, as it says itself or the JSON beside it."""
    if path.suffix == ".npz" and "text_prompts" in names_in(path):
        return read_prompts(path)
    beside = path.with_name(f"{path.name[: -len(_suffix(path))]}.json")
    if not beside.is_file():
        return None
    held = json.loads(beside.read_text(encoding="utf-8"))
    names = {int(t["label"]): (t["prompt"],) for t in held.get("targets") or ()}
    for region in held.get("regions") or ():  # an answer of a grounded model
        if isinstance(region.get("label"), dict) and region["label"].get("file") == path.name:
            names[int(region["label"]["value"])] = (str(region["phrase"]),)
    return Prompts(names) if names else None


def _by_their_names(labels: np.ndarray, existence, own: Prompts, wanted: Prompts):
    """(labels, existence, remark): labels of a result under the numbers that the truth has for their names.

    A name that the truth does not know, or has twice, keeps its number, unless another one needs it.
    """

    def plain(text: str) -> str:
        return " ".join(text.casefold().split())

    numbers: dict[str, list[int]] = {}
    for number, texts in wanted.texts.items():
        for text in {plain(text) for text in texts}:
            numbers.setdefault(text, []).append(number)
    known = {}
    for label, texts in own.texts.items():
        places = {number for text in texts for number in numbers.get(plain(text), ())}
        if len(places) == 1 and not places & set(known.values()):
            known[label] = places.pop()
    changed = {label: number for label, number in known.items() if label != number}
    if not changed:
        return labels, existence, ""
    free = max([*own.texts, *wanted.texts, int(labels.max(initial=0))]) + 1
    for label in sorted(set(own.texts) - set(known)):
        if label in changed.values():
            changed[label], free = free, free + 1
    moved = labels.astype(np.int32)
    for label, number in changed.items():
        moved[labels == label] = number
    if existence is not None:
        existence = {changed.get(label, label): values for label, values in existence.items()}
    told = ", ".join(f"{label} is {number} ({wanted.texts[number][0]})" for label, number in changed.items()
                     if number in wanted.texts)  # fmt: skip
    return moved, existence, f"labels of the result compared by their names: {told}"


def _existence(path: Path) -> dict[int, np.ndarray] | None:
    """Label -> existence per slice (or of the whole volume, as one number)."""
    if path.suffix == ".npz":
        existence = members(path, ("existence",)).get("existence")
        if existence is None:
            return None
        return dict(zip(read_prompts(path).first(), existence, strict=True))
    beside = path.with_name(f"{path.name[: -len(_suffix(path))]}.json")
    if not beside.is_file():
        return None
    targets = json.loads(beside.read_text(encoding="utf-8")).get("targets", ())
    return {int(t["label"]): np.array([t["presence"]]) for t in targets}


def _suffix(path: Path) -> str:
    return next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))
