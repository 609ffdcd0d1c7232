"""One source asked and its answers written: the row of a run, of a job and of `unimed predict --json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unimed.inference.asking import Source, ask, save_volume_prediction
from unimed.io.result import NothingToWriteError
from unimed.names import ResultNames


def answer_source(
    model, source: Source, texts: Sequence[str], out: str | Path, *, plane: str | None, how: dict,
    formats: Sequence[str] = (), deidentified: bool = False, name: str = "", timed: bool = True,
    found: Sequence | None = None, **options,
) -> dict:  # fmt: skip
    """Ask about one source and write the answers.

    Args:
        out: folder of the files NAME-NUMBER.*, with JSON and an overlay of each text, and a label map of volumes.
        how, options: as of `unimed.inference.asking.ask`.
        formats: written as well; see docs/results.md and docs/clinic.md.
        name: of the files, where the caller keeps names apart; what bears it already is replaced.
        timed: write how long it took, so that no two runs give the same bytes.
        found: the answers, where they are there already (`unimed.inference.asking.ask_images`).

    Returns:
        plain values: `source` (name), `steps`, `answers` with question, text, regions and `files`, and `not_written`
        where nothing was found that a format could hold; for a contrastive model one answer over all texts.

    Raises:
        ValueError: what cannot be asked or written.
    """
    out, answers, steps = Path(out), [], []
    if found is None:
        found = ask(model, source, texts, plane=plane, how=how, **options)
    for number, (question, one) in enumerate(zip(texts, found, strict=False)):
        called = f"{name}-{number}" if name else ResultNames(out)(source.path, str(number))
        one = one if timed else replace(one, timing_s={})
        steps = steps or list(one.image.steps if one.image is not None else ())
        if one.classes is not None:  # the labels of a contrastive model, compared with one another
            answers.append({"labels": list(texts), **one.classes.to_dict()})
            continue
        if source.is_volume:
            written = save_volume_prediction(one, source.pixels, out, called, question, deidentified)
        else:
            written = one.save(out, called, ("json", "png"), image=source.pixels, deidentified=deidentified)
        more = [form for form in formats if form not in ("json", "png") + ("nifti",) * source.is_volume]
        missing = []
        if more:
            try:
                written += one.save(out, called, more, image=source.pixels, deidentified=deidentified)
            except NothingToWriteError:  # an answer all the same: formats that can hold it are written
                for form in more:
                    try:
                        written += one.save(out, called, (form,), image=source.pixels, deidentified=deidentified)
                    except NothingToWriteError as error:
                        missing.append(f"{form}: {error}")
        row = answer_row(question, one) | {"files": [path.name for path in written]}
        answers.append(row | ({"not_written": missing} if missing else {}))
    return {"source": source.path.name, "steps": steps, "answers": answers, "notice": "research use only"}


def answer_row(question: str, prediction) -> dict:
    """Question, text and regions as plain values, with sizes instead of masks."""
    regions = []
    for region, values in zip(prediction.regions, prediction.to_dict()["regions"], strict=True):
        kept = {key: value for key, value in values.items() if key not in ("mask_rle", "phrase_span")}
        if region.mask is not None:
            kept["voxels" if region.mask.ndim == 3 else "pixels"] = int(region.mask.sum())
        regions.append(kept)
    return {"question": question, "text": prediction.text, "regions": regions}
