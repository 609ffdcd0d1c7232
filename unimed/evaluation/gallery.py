"""Pictures of the cases a run did worst on: truth beside prediction, each said which it is."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from unimed.evaluation.comparing import worst_cases
from unimed.io.montage import key_slices
from unimed.io.overlay import contact_sheet, image_with_captions, scale_to_width
from unimed.io.result import Prediction
from unimed.io.windows import to_uint8
from unimed.structures import Region, Sample

#: Width of truth and of prediction in pixels.
WIDTH = 256


def failure_gallery(
    samples: Sequence[Sample], predictions: Sequence[Prediction], rows: Sequence[Mapping], metric: str, most: int = 12
) -> Iterator[tuple[bytes, str]]:
    """(PNG, caption) of the worst cases by `metric`, the worst first.

    A volume is shown at the slice in which the true mask is largest. Samples that no row names are left out.

    Args:
        samples, predictions: in one order; `Sample.sample_id` is the `case` of a row.
        rows: of the schema (`unimed.evaluation.cases`).
    """
    known = {sample.sample_id: (sample, prediction) for sample, prediction in zip(samples, predictions, strict=True)}
    for row in worst_cases(rows, metric, max(most, 1) * 4):
        # Rows of located boxes are named SAMPLE/PHRASE/NUMBER.
        name = next((n for n in (str(row["case"]), str(row["case"]).rsplit("/", 2)[0]) if n in known), None)
        if name is None or most < 1:
            continue
        most -= 1
        sample, prediction = known[name]
        caption = f"{row['case']}: {row.get('target') or row.get('task')}, {metric} {float(row[metric]):.3f}"
        yield _png(beside(sample, prediction)), caption


def beside(sample: Sample, prediction: Prediction) -> np.ndarray:
    """Truth on the left, prediction on the right, uint8 HxWx3; a volume at one slice, which is named."""
    image, true, found, note = _flat(sample, prediction)
    cells = []
    for title, regions in ((f"truth{note}", true), (f"prediction{note}", found)):
        scaled, moved = scale_to_width(image, regions, WIDTH)
        cells.append(image_with_captions(scaled, moved, title))
    return contact_sheet([cells])


def _flat(sample: Sample, prediction: Prediction):
    image = np.asarray(sample.images[0])
    true, found = list(sample.regions), list(prediction.regions)
    if image.ndim < 3 or image.shape[-1] == 3:
        return to_uint8(image) if image.dtype != np.uint8 else image, true, found, ""
    masks = [r.mask for r in (*true, *found) if r.mask is not None and r.mask.shape == image.shape]
    total = masks[0] if masks else np.zeros(image.shape, bool)
    place = key_slices(total, 1)[0]
    gray = image[place]
    gray = gray if gray.dtype == np.uint8 else to_uint8(gray)

    def cut(regions: list[Region]) -> list[Region]:
        return [
            Region(r.phrase, mask=None if r.mask is None or r.mask.shape != image.shape else r.mask[place],
                   presence=r.presence)
            for r in regions
        ]  # fmt: skip

    return gray, cut(true), cut(found), f", slice {place + 1} of {len(image)}"


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()
