"""Text-prompted segmentation of pictures (BiomedParse v1 and v2 in 2D), and recognition: what of all known is there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimed.data.wordings.biomedparse_targets import image_type, lineage, presence_distributions, recognisable, wording
from unimed.geometry import Geometry
from unimed.inference.volume_text import check_prompts
from unimed.io.result import Prediction, contradiction
from unimed.metrics.recognition import combine_masks, mask_statistics, presence_p_value, suppress_covered
from unimed.structures import Region

OVERLAPS = ("keep", "combine", "nms")
#: Below it the K-S test of v1 says that a mask does not look like its target.
P_VALUE = 0.05
#: Prompts decoded together; more of them only take more memory.
PROMPT_BATCH = 8


@dataclass(frozen=True, eq=False)
class Found:
    """One prompt on one picture: what was asked, bool mask [H, W], probability map [H, W] float32, existence of v2 in
    [0, 1] (None for v1) and p-value of v1's test (None where the target has no published distributions)."""

    target: str
    prompt: str
    mask: np.ndarray
    probability: np.ndarray
    presence: float | None
    p_value: float | None = None

    @property
    def score(self) -> float:
        """What decides between targets: existence, else the p-value, else the mean probability in the mask."""
        if self.presence is not None:
            return self.presence
        if self.p_value is not None:
            return self.p_value
        return float(self.probability[self.mask].mean()) if self.mask.any() else 0.0

    def to_dict(self) -> dict:
        """Plain numbers, with the place in the hierarchy of targets."""
        return {
            "target": self.target,
            "prompt": self.prompt,
            "pixels": int(self.mask.sum()),
            "presence": self.presence,
            "p_value": self.p_value,
            "hierarchy": list(lineage(self.target)),
        } | (
            {"remark": remark}
            if (remark := contradiction(Region(self.target, self.mask, presence=self.presence)))
            else {}
        )


def segment_image(
    model,
    image: np.ndarray,
    prompts: Sequence[str],
    *,
    kind: str = "",
    targets: Sequence[str] | None = None,
    threshold: float = 0.5,
    p_value: float | None = None,
    overlap: str = "keep",
    seed: int = 0,
) -> list[Found]:
    """A mask per prompt; the image is encoded once.

    Args:
        image: uint8 HxW or HxWx3. It is padded to a square with zeros and brought to the model's size.
        kind: image type for the K-S test of v1, see `data.targets.image_type`; empty leaves the test out.
        targets: names of what is asked for, for the test and the hierarchy; default: the prompts themselves.
        threshold: v2: masks of prompts with less existence are empty.
        p_value: masks with a smaller p-value are emptied; None keeps them.
        overlap: "keep" lets masks overlap; "combine" gives each pixel to the most probable target and drops targets
            that lose most of theirs; "nms" drops masks that a better one covers by more than half, then combines.

    Returns:
        One `Found` per prompt, in order.

    Raises:
        ValueError: no uint8 picture, unknown `overlap`, lists of different length. PromptError: no prompt.
    """
    asked = list(check_prompts(prompts).values())
    targets = list(targets or asked)
    if len(targets) != len(asked) or overlap not in OVERLAPS:
        raise ValueError(
            f"overlap must be one of {OVERLAPS} and targets as many as prompts, got {overlap!r}, {targets}"
        )
    probabilities, existence = _probabilities(model, image, asked, threshold, seed)
    rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    found = []
    for row, (target, prompt) in enumerate(zip(targets, asked, strict=True)):
        probability, presence, p = probabilities[row], existence[row], None
        shapes = presence_distributions(kind, target) if kind else None
        if presence is None and shapes:
            p = presence_p_value(mask_statistics(probability, rgb), shapes)
        if p is not None and p_value is not None and p < p_value:
            probability = np.zeros_like(probability)
        found.append(Found(target, prompt, probability > 0.5, probability, presence, p))
    return found if overlap == "keep" else _shared_out(found, overlap)


def recognise(
    model, image: np.ndarray, modality: str, site: str = "", *, threshold: float = 0.5, p_value=P_VALUE, seed: int = 0
) -> list[Found]:
    """Which of the known targets of this kind of image are there, without being asked for any.

    Every target of the image type is asked for at once; what is not there, or covered by a surer one, goes; pixels
    claimed by several are shared out. v2 goes by its existence score, v1 by the K-S test (`p_value`, None keeps all).

    Args:
        modality, site: or an image type as `modality`, such as "CT-Abdomen"; see `data.targets.image_type`.

    Returns:
        What was found, the surest first; no two masks overlap.

    Raises:
        TargetError: no list of targets for this kind of image.
    """
    kind = image_type(modality, site)
    targets = recognisable(kind)
    prompts = [wording(target, kind, modality, site) for target in targets]
    found = segment_image(
        model,
        image,
        prompts,
        kind=kind,
        targets=targets,
        threshold=threshold,
        p_value=p_value,
        overlap="nms",
        seed=seed,
    )
    return sorted((f for f in found if f.mask.any()), key=lambda f: -f.score)


def hierarchy(found: Sequence[Found]) -> dict:
    """Targets below their categories, {"organ": {"score": ..., "below": {"kidney": ...}}}.

    The score of a category is that of itself where it was found, else the best below it: an organ is there where one
    of its parts is.
    """
    tree: dict = {}
    for one in sorted(found, key=lambda f: len(lineage(f.target))):
        line, branch = lineage(one.target) or (one.target,), tree
        for name in line:
            node = branch.setdefault(name, {"score": 0.0, "below": {}})
            node["score"] = max(node["score"], one.score)
            branch = node["below"]
    return tree


def as_prediction(
    found: Sequence[Found], geometry: Geometry | None = None, seconds: float = 0.0, model: str = "", image=None
):
    """Regions with masks and boxes, ready to be saved; targets without a mask keep their presence."""
    regions = []
    for one in found:
        box = None
        if one.mask.any():
            rows, columns = np.flatnonzero(one.mask.any(1)), np.flatnonzero(one.mask.any(0))
            box = tuple(float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        certain = float(one.probability[one.mask].mean()) if one.mask.any() else None
        regions.append(Region(one.target, mask=one.mask, box_xyxy_px=box, presence=one.presence, confidence=certain))
    return Prediction("", tuple(regions), geometry, {"segment": seconds}, model, image=image)


def predict(
    model, image: np.ndarray, prompts: Sequence[str], geometry: Geometry | None = None, **options
) -> Prediction:
    """`segment_image` with its time, as a `Prediction`."""
    begin = time.perf_counter()
    found = segment_image(model, image, prompts, **options)
    name = str(getattr(model.config, "_name_or_path", "") or "")
    return as_prediction(found, geometry, time.perf_counter() - begin, name)


def prepare_picture(image: np.ndarray, config):
    """A picture as the model sees it: tensor [1, 3, size, size] in 0..255, padded to a square with zeros first.

    v1 was trained on antialiased pictures, v2 on plain bicubic ones. A model whose channels are neighbouring slices
    sees the grey picture three times.

    Raises:
        ValueError: not uint8, or not HxW or HxWx3.
    """
    import torch
    from torch.nn import functional as F

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"an image is uint8 HxW or HxWx3, got {image.dtype} {image.shape}; window it first")
    if image.ndim == 3 and config.channels == "slices":
        image = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    padded = np.pad(rgb, (*_square_pad(rgb.shape[:2]), (0, 0)))
    tensor = torch.from_numpy(padded.astype(np.float32)).permute(2, 0, 1)[None]
    size = (config.image_size, config.image_size)
    if padded.shape[:2] != size:
        tensor = F.interpolate(tensor, size=size, mode="bicubic", align_corners=False, antialias=_is_v1(config))
    return tensor.clamp(0, 255)


def _is_v1(config) -> bool:
    return config.model_type == "unimed_biomedparse_v1"


def _square_pad(shape) -> tuple[tuple[int, int], tuple[int, int]]:
    side = max(shape)
    return tuple(((side - extent) // 2, side - extent - (side - extent) // 2) for extent in shape)


def _probabilities(model, image, prompts, threshold, seed):
    """Maps [P, H, W] in the grid of the picture, emptied where v2 says "not there"; existence per prompt or None."""
    from unimed.models.boltzformer.postprocessing import enlarge_bilinear, upsample

    enlarge = enlarge_bilinear if _is_v1(model.config) else upsample
    features = model.encode_images(prepare_picture(image, model.config))
    texts = model.encode_prompts(prompts)
    (top, _), (left, _) = _square_pad(image.shape[:2])
    rows, columns = image.shape[:2]
    maps, existence = [], []
    for start in range(0, len(prompts), PROMPT_BATCH):
        part = texts.select(range(start, min(start + PROMPT_BATCH, len(prompts))))
        output = model.segment_slices(features, part, seed=seed)
        for logits, there in zip(output.mask_logits[0], output.existence[0].tolist(), strict=True):
            whole = enlarge(logits, max(rows, columns)).sigmoid()
            probability = whole[top : top + rows, left : left + columns]
            judged = there == there  # v1 gives NaN
            maps.append(probability.float().cpu().numpy() * (not judged or there > threshold))
            existence.append(there if judged else None)
    return maps, existence


def _shared_out(found: list[Found], overlap: str) -> list[Found]:
    by_row = {str(row): one.probability for row, one in enumerate(found)}
    if overlap == "nms":
        kept = set(suppress_covered(by_row, {str(row): one.score for row, one in enumerate(found)}))
        by_row = {row: probability for row, probability in by_row.items() if row in kept}
    masks = combine_masks({row: probability for row, probability in by_row.items() if (probability > 0.5).any()})
    nothing = np.zeros(found[0].mask.shape, dtype=bool)
    return [
        Found(one.target, one.prompt, masks.get(str(row), nothing), one.probability, one.presence, one.p_value)
        for row, one in enumerate(found)
    ]
