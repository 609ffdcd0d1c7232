"""Results in the layouts of published systems, as their own scripts read them."""

from __future__ import annotations

from pathlib import Path

from unimed.io.answers import write_answer
from unimed.io.result import Prediction
from unimed.io.write import write_npz
from unimed.io.writers.volumes import challenge_arrays
from unimed.registry import WRITERS


@WRITERS.register_module("unibiomed")
def as_unibiomed_answer(prediction: Prediction, image=None, formats=()) -> dict:
    """`NAME.json` of UniBiomed's demos: `image_id`, `caption`, `phrases` and `pred_masks` (COCO's compressed runs).

    Raises:
        ValueError: masks of a volume, which that layout cannot hold.
    """
    if prediction.is_volume:
        raise ValueError("format 'unibiomed' holds 2D masks, this prediction is of a volume; use 'json'")
    masks = [region.mask for region in prediction.regions if region.mask is not None]
    markup = prediction.markup or prediction.text

    def write(path: Path) -> Path:
        write_answer(path, path.name.removesuffix(".json"), markup, "marked", masks)
        return path

    return {".json": write}


@WRITERS.register_module("biomedparse-npz")
def as_challenge(prediction: Prediction, image=None, formats=()) -> dict:
    """`NAME.npz` of the CVPR 2025 text-prompted challenge: `segs`, `text_prompts`, and `existence` where it is known.

    Raises:
        ValueError: no mask.
    """
    arrays = challenge_arrays(prediction)
    return {".npz": lambda path: write_npz(path, arrays)}
