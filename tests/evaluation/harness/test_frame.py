"""A wrong frame of boxes is found for every registered dialect, by name; a right one passes; nothing is guessed."""

import json

import pytest
from evaluation.harness import drawn

from unimed.evaluation.contestants.base import Contestant
from unimed.evaluation.contestants.text_boxes import prediction_of
from unimed.evaluation.harness import frame
from unimed.evaluation.harness.plan import Plan, execute
from unimed.io.result import Prediction
from unimed.models.dialects import build_dialect
from unimed.models.dialects.boxes import PALIGEMMA
from unimed.registry import CONTESTANTS, DIALECTS, registered
from unimed.structures import Region

NAMES = sorted(name for name, one in registered(DIALECTS).items() if one.__module__.startswith("unimed."))


def scaled(across, down):
    return lambda box, size: (box[0] * across, box[1] * down, box[2] * across, box[3] * down)


#: What is written instead of fractions of the image: (box as fractions, (height, width)) -> numbers.
WRITTEN = {
    "0 to 100": scaled(100, 100),
    "0 to 1000": scaled(1000, 1000),
    "0 to 1024": scaled(1024, 1024),
    "pixels of the image": lambda box, size: scaled(size[1], size[0])(box, size),
    "pixels of an image of 448 x 448": scaled(448, 448),
    "y first": lambda box, size: scaled(1000, 1000)((box[1], box[0], box[3], box[2]), size),
    "x y width height": lambda box, size: scaled(1000, 1000)((box[0], box[1], box[2] - box[0], box[3] - box[1]), size),
}


def own(dialect):
    """The frames that a dialect reads rightly: its own."""
    if dialect.boxes is None or dialect.boxes.scale is None:
        return {"pixels of the image"}
    return {f"0 to {dialect.boxes.scale}"}


class Writer(Contestant):
    """Finds the rectangle and writes it in a frame; read by a dialect."""

    frame_checked = True

    def __init__(self, dialect, written, by=None):
        super().__init__()
        self.dialect, self.written, self.by = dialect, written, by or dialect

    def answer(self, samples):
        found = []
        for sample, truth in zip(samples, frame.drawn_samples(), strict=True):
            size = sample.images[0].shape[:2]
            x1, y1, x2, y2 = truth.regions[0].box_xyxy_px
            numbers = self.written((x1 / size[1], y1 / size[0], x2 / size[1], y2 / size[0]), size)
            if self.dialect.boxes is None:  # by tokens: pixels without words
                found.append(Prediction("It.", (Region("bright rectangle", box_xyxy_px=numbers),)))
                continue
            text = "It is here: " + self.by.boxes.write_group("bright rectangle", [numbers])
            found.append(prediction_of(text, self.dialect, sample))
        return found


def test_a_wrong_frame_is_found_for_every_dialect():
    found = {}
    for name in NAMES:
        dialect = build_dialect(name)
        for words, written in WRITTEN.items():
            if dialect.boxes is None and words == "x y width height":
                continue  # no box at all: a region without an area cannot be made
            if dialect.boxes is PALIGEMMA and words in ("pixels of the image", "0 to 1000"):
                continue  # 1024 bins are as near as its rounding can tell apart on small images
            report = frame.frame_test(Writer(dialect, written))
            right = words in own(dialect)
            assert report.verdict == ("right" if right else "wrong"), (name, words, report)
            assert report.best_iou > 0.9, (name, words, report)
        found[name] = True
    assert len(found) == len(NAMES) >= 9


def test_boxes_written_as_another_dialect_does_are_named():
    dialect, other = build_dialect("uni_med"), build_dialect("qwen3_vl")
    report = frame.frame_test(Writer(dialect, scaled(1000, 1000), by=other))
    assert report.verdict == "wrong" and report.iou == 0 and report.dialects == ("qwen3_vl",)


def test_who_does_not_find_the_rectangle_is_not_called_wrong():
    class Blind(Writer):
        def answer(self, samples):
            text = self.dialect.boxes.write_group("x", [(10, 10, 990, 20)])
            return [prediction_of(text, self.dialect, sample) for sample in samples]

    assert frame.frame_test(Blind(build_dialect("qwen3_vl"), None)).verdict == "not shown"

    class Silent(Writer):
        def answer(self, samples):
            return [Prediction("I see a rectangle.") for _ in samples]

    assert frame.frame_test(Silent(build_dialect("qwen3_vl"), None)).verdict == "no boxes"


def test_it_is_found_before_any_score_is_computed(tmp_path, monkeypatch):
    data = drawn.write(tmp_path / "data", patients=1, test_patients=1)
    asked = []

    class Wrong(Writer):
        def __init__(self, reference="", settings=None):
            super().__init__(build_dialect("uni_med"), scaled(1000, 1000))

        def answer(self, samples):
            asked.extend(sample.sample_id for sample in samples)
            return super().answer(samples)

    monkeypatch.setattr(CONTESTANTS, "_module_dict", {**registered(CONTESTANTS), "wrong": Wrong})
    plan = Plan("unimed/any", "wrong:", data=str(data))
    with pytest.raises(frame.FrameError, match="x1 y1 x2 y2 in 0 to 1000; no registered dialect"):
        execute(plan, tmp_path / "run")
    assert {name.split("-")[0] for name in asked} == {"frame"} and not (tmp_path / "run" / "cases.jsonl").exists()
    assert not list(tmp_path.glob("run/*.jsonl"))


def test_a_right_frame_stands_in_the_manifest(tmp_path, monkeypatch):
    data = drawn.write(tmp_path / "data", patients=1, test_patients=1)

    class Right(Writer):
        def __init__(self, reference="", settings=None):
            super().__init__(build_dialect("qwen3_vl"), scaled(1000, 1000))

        def answer(self, samples):
            return (
                super().answer(samples) if samples[0].sample_id == "frame-0" else [Prediction("yes") for _ in samples]
            )

    monkeypatch.setattr(CONTESTANTS, "_module_dict", {**registered(CONTESTANTS), "right": Right})
    manifest, text = execute(Plan("unimed/any", "right:", data=str(data), resamples=5, worst=0), tmp_path / "run")
    assert manifest["contestant"]["frame"]["verdict"] == "right" and "Frame of boxes" in text
    assert json.loads((tmp_path / "run/manifest.json").read_text())["contestant"]["frame"]["iou"] > 0.9
