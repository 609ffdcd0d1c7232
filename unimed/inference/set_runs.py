"""A model over the cases of a test set: batched, resumable, shared by several processes; files as UniBiomed names them.

Every run keeps its state in a folder of its own (`cases.jsonl`, `failed.jsonl`, `run.json`, see `folder`), so that a
picture called "run" or "cases" cannot collide with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unimed.data.readers.unibiomed import TreeError
from unimed.data.readers.unibiomed_tests import within
from unimed.files import read_json
from unimed.inference.runs import (
    FolderError,
    FolderReport,
    case_content,
    other_settings,
    read_finished,
    run_cases,
    run_settings,
)
from unimed.io.answers import write_answer, write_mask
from unimed.io.images import load as load_image
from unimed.io.images import load_stack
from unimed.io.masks import load_mask
from unimed.io.overlay import NOTICE, contact_sheet, image_with_captions, scale_to_width, write_image
from unimed.io.region_box import draw_box
from unimed.io.result import contradiction
from unimed.locks import FolderInUseError, describe_owner, living_owner
from unimed.structures import Case, Region

#: Width in pixels at which overlays are drawn: captions need room.
IMAGE_WIDTH = 384


@dataclass(frozen=True)
class Run:
    """How a run works; nothing here changes an answer but `max_new_tokens`.

    `state` is the folder of the run's state; `overlays` is how many pictures with drawn regions are kept (evenly spread
    over the cases) in `overlay_folder`.
    """

    state: Path
    overlay_folder: Path
    batch_size: int = 4
    max_new_tokens: int = 512
    overlays: int = 12
    restart: bool = False


def ranks(launcher: str = "none") -> tuple[int, int]:
    """(number of this process, how many there are), told by the launcher: none, pytorch (torchrun), slurm."""
    names = {"pytorch": ("RANK", "WORLD_SIZE"), "slurm": ("SLURM_PROCID", "SLURM_NTASKS")}.get(launcher)
    if names is None:
        return 0, 1
    return int(os.environ.get(names[0], 0)), int(os.environ.get(names[1], 1))


def run_shared(
    cases: Sequence[Case], predict: Callable, run: Run, settings: Mapping, launcher: str = "none"
) -> FolderReport:
    """`run_cases` where every process takes each n-th case; what any process of any earlier run finished is skipped.

    Returns:
        the report of this process alone.

    Raises:
        FolderError: as `run_cases`, also for the state of other processes.
    """
    rank, size = ranks(launcher)
    folder = run.state if size == 1 else run.state / f"rank-{rank}-of-{size}"
    kept = run_settings({**settings, "max_new_tokens": run.max_new_tokens})
    mine, elsewhere = list(cases)[rank::size], {}
    for path in sorted(run.state.rglob("run.json")) if run.state.is_dir() else ():
        if path.parent == folder:
            continue
        sibling = path.parent.name.endswith(f"-of-{size}") and size > 1
        if not sibling and (owner := living_owner(path.parent / ".lock")):
            raise FolderInUseError(f"{path.parent} is in use: {describe_owner(owner)}; wait for it or stop it")
        if run.restart:
            # Those of this number of processes are the business of the other processes.
            if not sibling:
                (path.parent / "cases.jsonl").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        elif (before := read_json(path, error=FolderError)) != kept:
            raise FolderError(other_settings(path.parent, before, kept))
        else:
            elsewhere |= read_finished(path.parent / "cases.jsonl")
    done = {case.name for case in mine if elsewhere.get(case.name, {}).get("content") == case_content(case)}
    todo = [case for case in mine if case.name not in done]
    settings = {**settings, "max_new_tokens": run.max_new_tokens}
    report = run_cases(todo, predict, folder, settings=settings, batch_size=run.batch_size, restart=run.restart)
    report.skipped += len(done)
    rows = {name: elsewhere[name] for name in done} | {row["case"]: row for row in report.rows}
    report.rows = [rows[case.name] for case in mine if case.name in rows]
    return report


def _shown(cases: Sequence[Case], count: int) -> set[str]:
    """Names of `count` cases spread evenly."""
    places = np.unique(np.linspace(0, len(cases) - 1, min(count, len(cases))).round().astype(int)) if cases else ()
    return {cases[int(place)].name for place in places}


def _first_mask(prediction, shape: tuple[int, ...]) -> np.ndarray:
    """The mask of the first [SEG]; all False where the answer points at nothing."""
    masks = [region.mask for region in prediction.regions if region.mask is not None]
    return masks[0] if masks else np.zeros(shape, dtype=bool)


def _image(path: Path, image: np.ndarray, regions, truth: np.ndarray | None = None, title: str = "") -> None:
    """Overlay of the answer, beside that of the truth where there is one; each says which it is."""
    parts = {"prediction": regions}
    if truth is not None:
        phrase = regions[0].phrase if regions else "region"
        parts = {"truth": [Region(phrase, mask=truth)], **parts}
    row = [image_with_captions(*scale_to_width(image, list(part), IMAGE_WIDTH), title=kind)
           for kind, part in parts.items()]  # fmt: skip
    note = f"{title}; {NOTICE}" if title else NOTICE
    write_image(path, contact_sheet([row], note=note))


def segment_images(model, cases: Sequence[Case], out: Path, run: Run, settings: Mapping, launcher="none"):
    """Answer `segmentation_cases`; the first mask of each goes to OUT/<split>/<mask_file> as 0 and 255."""
    shown = _shown(cases, run.overlays)

    def predict(batch: list[Case]) -> list[dict]:
        images = [load_image(str(case.inputs["image"])) for case in batch]
        texts = [case.inputs["text"] for case in batch]
        answers = model.predict_batch(images, texts, batch_size=len(batch), max_new_tokens=run.max_new_tokens)
        rows = []
        for case, image, answer in zip(batch, images, answers, strict=True):
            mask = _first_mask(answer, image.rgb.shape[:2])
            write_mask(within(out, case.inputs["out"]), mask)
            if case.name in shown:
                truth = case.inputs["truth"]
                truth = load_mask(truth, image=image, resize=True)[0] if truth.is_file() else None
                path = within(run.overlay_folder, f"{case.name.removesuffix('.png')}.png")
                _image(path, image.rgb, answer.regions, truth, case.inputs["text"])
            rows.append(_row(case, answer, image.steps) | {"mask_pixels": int(mask.sum())})
        return rows

    return run_shared(cases, predict, run, settings, launcher)


def answer_images(
    model,
    cases: Sequence[Case],
    out: Path,
    form: str,
    run: Run,
    settings: Mapping,
    masks_to: Path | None = None,
    launcher: str = "none",
):
    """Answer questions about images; each answer goes to OUT/<case>.json.

    Args:
        form: how captions are cut, see `answers.FORMS`.
        masks_to: folder of the first mask of each answer under the name of its image; None leaves masks out.
    """
    shown = _shown(cases, run.overlays)

    def predict(batch: list[Case]) -> list[dict]:
        images = [load_image(str(case.inputs["image"])) for case in batch]
        answers = _ask(model, batch, images, run.max_new_tokens)
        rows = []
        for case, image, answer in zip(batch, images, answers, strict=True):
            masks = None
            if masks_to is not None:
                masks = [region.mask for region in answer.regions if region.mask is not None]
                masks = masks or [np.zeros(image.rgb.shape[:2], dtype=bool)]
                write_mask(within(masks_to, case.inputs["image_name"]), masks[0])
            content = write_answer(within(out, f"{case.name}.json"), case.name, answer.markup, form, masks)
            if case.name in shown:
                path = within(run.overlay_folder, f"{case.name.removesuffix('.png')}.png")
                _image(path, image.rgb, answer.regions, title=case.inputs["text"])
            rows.append(_row(case, answer, image.steps) | {"caption": content["caption"]})
        return rows

    return run_shared(cases, predict, run, settings, launcher)


def _ask(model, batch: list[Case], images: list, max_new_tokens: int) -> list:
    texts = [case.inputs["text"] for case in batch]
    if "region" not in batch[0].inputs:
        return model.predict_batch(images, texts, batch_size=len(batch), max_new_tokens=max_new_tokens)
    regions = []
    for case, image in zip(batch, images, strict=True):
        mask = load_mask(case.inputs["region"], image=image, resize=True)[0]
        if not mask.any():
            raise TreeError(f"{case.inputs['region']}: mask is empty; there is no region to ask about")
        regions.append(mask)
    if batch[0].inputs["framed"]:
        drawn = [draw_box(image.rgb, mask) for image, mask in zip(images, regions, strict=True)]
        return model.predict_batch(drawn, texts, batch_size=len(batch), max_new_tokens=max_new_tokens)
    given = [[mask] for mask in regions]
    return model.predict_batch(images, texts, given, batch_size=len(batch), max_new_tokens=max_new_tokens)


def segment_volumes(
    model,
    cases: Sequence[Case],
    out: Path,
    run: Run,
    settings: Mapping,
    launcher: str = "none",
    compat: str | None = None,
):
    """Answer `volume_cases`; one picture per slice at OUT/<volume>/<expression>/<slice>.

    Args:
        compat: "reference" lets the language model read the first five slices, as UniBiomed does; by default five are
            spread over the volume.
    """
    shown = _shown(cases, run.overlays)

    def predict(batch: list[Case]) -> list[dict]:
        (case,) = batch
        slices = case.inputs["slices"]
        images = load_stack(slices, compat=compat)
        frames = [image.pixels for image in images]
        answer = model.predict_frames(frames, case.inputs["text"], compat=compat, max_new_tokens=run.max_new_tokens)
        mask = _first_mask(answer, (len(frames), *frames[0].shape[:2]))
        for path, plane in zip(slices, mask, strict=True):
            write_mask(within(out, str(Path(case.inputs["out"]) / path.name)), plane)
        if case.name in shown:
            largest = int(mask.sum(axis=(1, 2)).argmax()) if mask.any() else len(mask) // 2
            shape, truth = frames[largest].shape[:2], case.inputs["truth"].get(slices[largest].name)
            known = truth is not None and truth.is_file()
            truth = load_mask(truth, image=images[largest], resize=True)[0] if known else np.zeros(shape, dtype=bool)
            presence = answer.regions[0].presence if answer.regions else None
            region = Region(case.inputs["phrase"], mask=mask[largest], presence=presence)
            path = within(run.overlay_folder, f"{case.name.removesuffix('.png')}.png")
            title = f"{case.inputs['text']} (slice {largest + 1} of {len(slices)})"
            _image(path, frames[largest], [region], truth, title)
        return [_row(case, answer, images[0].steps) | {"mask_voxels": int(mask.sum()), "slices": len(slices)}]

    # A volume is a batch of its own: its slices are what is worked on together.
    return run_shared(cases, predict, replace(run, batch_size=1), {**settings, "compat": compat}, launcher)


def _row(case: Case, answer, steps: Sequence[str] = ()) -> dict:
    regions = [
        {"phrase": region.phrase, "presence": region.presence, "confidence": region.confidence}
        | ({"remark": remark} if (remark := contradiction(region)) else {})
        for region in answer.regions
    ]
    row = {"question": case.inputs["text"], "answer": answer.markup, "regions": regions}
    return row | ({"steps": list(steps)} if steps else {})
