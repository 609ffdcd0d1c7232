"""Runs an exported mask stage with onnxruntime (or OpenVINO) and numpy alone, without torch. Research use only.

stage = MaskStage("masks")                                       # written by `unimed export-masks MODEL masks`
prediction = stage.segment_boxes("image.png", [(40, 60, 120, 150)])
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.files import read_json
from unimed.io.boxes_given import regions_of_boxes, window_around
from unimed.io.graphs import open_graph
from unimed.io.images import load as load_image
from unimed.io.result import Prediction
from unimed.io.squares import frame, placed, resized
from unimed.structures import Region

#: Name of the description beside the graphs.
STAGE = "mask_stage.json"
_SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}


class MaskStage:
    """Args:
        folder: written by `unimed export-masks`.
        int8: the encoder with weights of eight bits, where the folder has it.
        threads: of onnxruntime; 0 leaves it to it.
        providers: of onnxruntime, such as "CUDAExecutionProvider".
        engine: "onnxruntime", or "openvino" where the folder was written with `--openvino`.

    Raises:
        ValueError: the folder holds no exported mask stage, or none for this engine.
        ImportError: the engine is missing.
    """

    def __init__(
        self, folder: str | Path, *, int8: bool = False, threads: int = 0, providers=("CPUExecutionProvider",),
        engine: str = "onnxruntime",
    ):  # fmt: skip
        self.folder = Path(folder)
        if not (self.folder / STAGE).is_file():
            raise ValueError(f"{folder}: no {STAGE} in it; write it by `unimed export-masks MODEL {folder}`")
        if engine not in _SUFFIXES:
            raise ValueError(f"engine {engine!r} is not known; choose {' or '.join(_SUFFIXES)}")
        if engine == "openvino" and int8:
            raise ValueError("the encoder of eight bits is for onnxruntime")
        suffix = _SUFFIXES[engine]
        if not (self.folder / f"encoder{suffix}").is_file():
            raise ValueError(f"{folder}: no encoder{suffix} in it; write it by `unimed export-masks ... --openvino`")
        self.settings = read_json(self.folder / STAGE)
        self._open = lambda name: open_graph(self.folder / f"{name}{suffix}", threads, providers)
        self._runs: dict = {}
        self._encoder = "encoder.int8" if int8 else "encoder"

    def encode(self, rgb: np.ndarray) -> tuple[np.ndarray, ...]:
        """Features of an image, HxWx3 uint8; once for any number of boxes or vectors."""
        told = self.settings
        pixels = placed(rgb, self._frame(rgb.shape[:2]), told["fit"], told["mean"], told["std"])
        return tuple(self._run(self._encoder, {"pixels": pixels[None]}))

    def decode(self, features: Sequence[np.ndarray], size_hw: tuple[int, int], *, boxes=None, states=None):
        """Logits [N, H, W] in pixels of the image, quality [N] and presence [N] (None without a presence head).

        Args:
            features: of `encode`.
            boxes: [N, 4] xyxy in pixels of the image; or
            states: [N, D], hidden states of `[SEG]` tokens, from whatever wrote the answer.
        """
        if (boxes is None) == (states is None):
            raise ValueError("give boxes or states, one of the two")
        where, presence = self._frame(size_hw), None
        if boxes is not None:
            kind, prompts = "boxes", np.asarray(boxes, np.float32).reshape(-1, 4) * where.scale
        else:
            prompts, *rest = self._run("heads", {"states": np.asarray(states, np.float32)})
            kind, presence = "vectors", rest[0] if rest else None
        given = {f"features_{number}": one for number, one in enumerate(features)}
        logits, quality = [], []
        for start in range(0, len(prompts), self.settings["most"]):
            part = {kind: prompts[start : start + self.settings["most"]].astype(np.float32)}
            low, good, _ = self._run(kind, part | given)
            side = resized(low, (where.side, where.side)) if low.shape[-1] != where.side else low
            rows, columns = where.content_hw
            logits.append(resized(side[:, :rows, :columns], size_hw))
            quality.append(good)
        if not logits:
            return np.zeros((0, *size_hw), np.float32), np.zeros(0, np.float32), presence
        return np.concatenate(logits), np.concatenate(quality), presence

    def segment_boxes(self, image, boxes_xyxy_px: Sequence, phrases: Sequence[str] = (), site: str = "") -> Prediction:
        """Cut out what lies in given boxes, as `model.segment_boxes` does.

        Raises:
            ValueError: no box, or one that is not four finite numbers, has no area or lies outside the image.
        """
        source = load_image(image, site=site)
        height, width = source.rgb.shape[:2]
        regions = regions_of_boxes(boxes_xyxy_px, phrases, width, height)
        began, zoom, known, found = time.perf_counter(), self.settings["box_zoom"], {}, []
        for region in regions:
            box = region.box_xyxy_px
            window = (0, 0, width, height) if zoom is None else window_around(box, zoom, width, height)
            left, top, right, bottom = window
            size = (bottom - top, right - left)
            if window not in known:
                known[window] = self.encode(np.ascontiguousarray(source.rgb[top:bottom, left:right]))
            inside, quality, _ = self.decode(known[window], size, boxes=[np.array(box) - [left, top, left, top]])
            mask = np.zeros((height, width), dtype=bool)
            mask[top:bottom, left:right] = inside[0] > 0
            found.append(Region(region.phrase, mask=mask, box_xyxy_px=box, confidence=float(quality[0].clip(0, 1))))
        spent = {"masks": time.perf_counter() - began}
        return Prediction("", tuple(found), source.geometry, spent, self.folder.name, image=source.source)

    def _frame(self, size_hw: tuple[int, int]):
        told = self.settings
        return frame(size_hw, told["image_size"], told["fit"], told["content"])

    def _run(self, name: str, given: dict) -> list[np.ndarray]:
        if name not in self._runs:
            self._runs[name] = self._open(name)
        return self._runs[name](given)
