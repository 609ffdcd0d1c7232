"""Are boxes read in the frame they are written in? A drawn image with one bright rectangle tells, before any score.

Models write boxes in thousandths, hundredths, fractions, pixels of the image or of the image as they resized it, with x
or y first, as corners or with a width. Read in a wrong frame they still are boxes, and score a little. So a contestant
is shown images whose answer is known, and its numbers are read in every frame that is in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimed.evaluation.contestants.base import Contestant, asked
from unimed.evaluation.contestants.text_boxes import prediction_of
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.metrics.boxes import iou_matrix
from unimed.models.dialects import build_dialect
from unimed.registry import DIALECTS, registered
from unimed.structures import Intent, Region, Sample

PHRASE = "bright rectangle"
#: (height, width) in pixels and the rectangle as fractions x1, y1, x2, y2; none is square, central or on the diagonal.
DRAWN = (
    ((240, 320), (0.60, 0.15, 0.90, 0.35)),
    ((320, 240), (0.10, 0.55, 0.30, 0.95)),
    ((200, 360), (0.70, 0.60, 0.95, 0.90)),
    ((256, 256), (0.15, 0.70, 0.50, 0.90)),
)
#: Sides of square images that models resize to, in pixels.
SIDES = (224, 336, 384, 448, 512, 560, 640, 768, 896, 1120, 1280)
ORDERS = {
    "x1 y1 x2 y2": lambda a, b, c, d: (a, b, c, d),
    "y1 x1 y2 x2": lambda a, b, c, d: (b, a, d, c),
    "x y width height": lambda a, b, c, d: (a, b, a + c, b + d),
    "center x, center y, width, height": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
}
#: Mean IoU from which a frame explains what was written.
FOUND = 0.5
#: By how much another frame must explain it better on every image.
CLEARLY = 0.1


class FrameError(ValueError):
    """Boxes are read in another frame than they are written in; the message says which, and what to do."""


@dataclass(frozen=True)
class FrameReport:
    """What the drawn images told.

    Attributes:
        verdict: "right"; "wrong": another frame fits clearly better; "not shown": no frame fits, since the contestant
            does not find the rectangle, so nothing is known; "no boxes": it wrote none.
        iou: mean IoU of the boxes as they are read. best, best_iou: the frame that fits best.
        dialects: registered dialects that read the answers as well as that.
    """

    verdict: str
    iou: float
    best: str = ""
    best_iou: float = 0.0
    dialects: tuple[str, ...] = ()


def drawn_samples() -> list[Sample]:
    """The images, uint8 HxWx3, each with its one region."""
    samples = []
    for number, ((height, width), (x1, y1, x2, y2)) in enumerate(DRAWN):
        image = np.full((height, width, 3), 20, np.uint8)
        box = (round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height))
        image[box[1] : box[3], box[0] : box[2]] = 250
        region = Region(PHRASE, box_xyxy_px=tuple(float(v) for v in box))
        samples.append(
            Sample(
                (image,), Geometry.pixels(), f"frame-{number}", regions=(region,), labels={"task": "box"},
                conversation=(("user", f"Where does the {PHRASE} lie?"), ("assistant", "")),
                intent=Intent("box", f"the {PHRASE}"),
            )
        )  # fmt: skip
    return samples


def frame_test(contestant: Contestant) -> FrameReport:
    """Show the drawn images to a contestant and judge its answers."""
    samples = drawn_samples()
    answers = contestant.answer([asked(sample) for sample in samples])
    return judge(samples, answers, getattr(contestant, "dialect", None))


def judge(samples: Sequence[Sample], answers: Sequence[Prediction], dialect=None) -> FrameReport:
    """Compare answers to the drawn images in every frame in use.

    Args:
        dialect: by which boxes were read from the text.
    """
    truths = [sample.regions[0].box_xyxy_px for sample in samples]
    read = np.array([_iou(_first_box(answer), truth) for answer, truth in zip(answers, truths, strict=True)])
    best, best_ious = "", np.zeros(len(samples))
    written = False
    for name, numbers in _written(answers, dialect):
        if all(one is None for one in numbers):
            continue
        written = True
        for frame, place in _frames():
            ious = np.array(
                [0.0 if one is None else _iou(place(one, sample.images[0].shape[:2]), truth)
                 for one, sample, truth in zip(numbers, samples, truths, strict=True)]
            )  # fmt: skip
            if ious.mean() > best_ious.mean():
                best, best_ious = f"{frame}{name}", ious
    iou, best_iou = float(read.mean()), float(best_ious.mean())
    if not written:
        return FrameReport("no boxes", iou)
    if best_iou >= FOUND and (best_ious > read + CLEARLY).all():
        fitting = _fitting(samples, answers, truths, best_iou - CLEARLY)
        return FrameReport("wrong", iou, best, best_iou, fitting)
    return FrameReport("right" if iou >= FOUND else "not shown", iou, best, best_iou)


def _fitting(samples, answers, truths, least: float) -> tuple[str, ...]:
    """Dialects by which the answers would be read with a mean IoU of at least `least`."""
    found = []
    for name in registered(DIALECTS):
        dialect = build_dialect(name)
        boxes = [_first_box(prediction_of(answer.markup or answer.text, dialect, sample))
                 for answer, sample in zip(answers, samples, strict=True)]  # fmt: skip
        if np.mean([_iou(box, truth) for box, truth in zip(boxes, truths, strict=True)]) >= least:
            found.append(name)
    return tuple(found)


def refuse_wrong_frame(report: FrameReport, name: str) -> None:
    """Raise where boxes are read wrongly.

    Raises:
        FrameError: see there.
    """
    if report.verdict == "wrong":
        raise FrameError(
            f"{name}: boxes are read in a wrong frame: on drawn images of a bright rectangle they fit with IoU "
            f"{report.iou:.2f} as they are read, and {report.best_iou:.2f} as {report.best}; "
            + (
                f"give --dialect {report.dialects[0]}"
                if report.dialects
                else "no registered dialect reads that: add one"
            )
            + " (no score was computed)"
        )


def _first_box(prediction: Prediction):
    return next((region.box_xyxy_px for region in prediction.regions if region.box_xyxy_px is not None), None)


def _iou(box, truth) -> float:
    if box is None or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
        return 0.0
    return float(iou_matrix([box], [truth])[0, 0])


def _written(answers: Sequence[Prediction], dialect):
    """(how they were found, the four numbers of each answer) for every way in which boxes may be written in a text."""
    boxes = dialect.boxes if dialect is not None else None
    formats = {id(boxes): ("", boxes)} if boxes is not None else {}
    for name in registered(DIALECTS):
        other = build_dialect(name).boxes
        if other is not None:
            formats.setdefault(id(other), (f", spelled as by {name}", other))
    found = False
    for name, form in formats.values():
        groups = [form.groups(answer.markup or answer.text) for answer in answers]
        numbers = [one[0][2][0] if one and one[0][2] else None for one in groups]
        if any(one is not None for one in numbers):
            found = True
            yield name, numbers
    if not found:  # by tokens: the numbers are pixels of the image already
        yield "", [_first_box(answer) for answer in answers]


def _frames():
    """(name, function of four numbers and (height, width) that gives a box in pixels of the image)."""

    def units(across, down):
        return lambda box, size: (
            box[0] * size[1] / across, box[1] * size[0] / down, box[2] * size[1] / across, box[3] * size[0] / down,
        )  # fmt: skip

    scales = {"fractions": units(1, 1), "0 to 100": units(100, 100), "0 to 1000": units(1000, 1000)}
    scales |= {"0 to 1024": units(1024, 1024), "pixels of the image": lambda box, size: box}
    scales |= {f"pixels of an image of {side} x {side}": units(side, side) for side in SIDES}
    for side in (*SIDES, 1024):
        scales[f"pixels of the image with its longer side at {side}"] = _longer(side)
        scales[f"pixels of the image padded to a square of {side}"] = _padded(side)
    for order, arrange in ORDERS.items():
        for scale, place in scales.items():
            yield f"{order} in {scale}", lambda box, size, arrange=arrange, place=place: place(arrange(*box), size)


def _longer(side: int):
    return lambda box, size: tuple(value * max(size) / side for value in box)


def _padded(side: int):
    def place(box, size):
        down, across = ((max(size) - one) / 2 for one in size)
        x1, y1, x2, y2 = (value * max(size) / side for value in box)
        return x1 - across, y1 - down, x2 - across, y2 - down

    return place
