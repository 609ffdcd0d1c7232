"""Text-prompted segmentation of pictures (BiomedParse v1 and v2 in 2D), and recognition: what of all known is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from unimed.data.wordings.biomedparse_targets import (
    TargetError,
    image_type,
    lineage,
    presence_distributions,
    recognisable,
    wording,
)
from unimed.io.images import ImageSource
from unimed.io.result import Prediction, contradiction
from unimed.metrics.recognition import combine_masks, mask_statistics, presence_p_value, suppress_covered
from unimed.models.boltzformer.processing import ParseProcessor, brightness
from unimed.models.boltzformer.tokenizing import PromptError, labeled_prompts
from unimed.structures import Region

OVERLAPS = ("keep", "combine", "nms")
#: Below it the K-S test of v1 says that a mask does not look like its target.
P_VALUE = 0.05
#: Prompts decoded together; more of them only take more memory.
PROMPT_BATCH = 8


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
) -> list[Region]:
    """A mask per prompt; the image is encoded once.

    Args:
        image: uint8 HxW or HxWx3. It is padded to a square with zeros and brought to the model's size; a model whose
            channels are neighbouring slices sees its brightness.
        kind: image type for the K-S test of v1, see `image_type`; empty leaves the test out.
        targets: names of what is asked for, for the test and the hierarchy; default: the prompts themselves.
        threshold: v2: masks of prompts with less existence are empty.
        p_value: masks with a smaller p-value are emptied; None keeps them.
        overlap: "keep" lets masks overlap; "combine" gives each pixel to the most probable target and drops targets
            that lose most of theirs; "nms" drops masks that a better one covers by more than half, then combines.

    Returns:
        One `Region` per prompt, in order: `phrase` is the target, `probability` its map [H, W], `presence` the
        existence of v2 (None for v1), `p_value` that of v1's test (None where no distributions of the target are
        published).

    Raises:
        ValueError: no uint8 picture, unknown `overlap`, lists of different length. PromptError: no prompt.
    """
    asked = list(labeled_prompts(prompts).values())
    targets = list(targets or asked)
    if len(targets) != len(asked) or overlap not in OVERLAPS:
        raise ValueError(
            f"overlap must be one of {OVERLAPS} and targets as many as prompts, got {overlap!r}, {targets}"
        )
    features = encode(model, [image])
    options = dict(targets=targets, kind=kind, threshold=threshold, p_value=p_value, overlap=overlap, seed=seed)
    return segment_encoded(model, features, image, asked, **options)


@torch.no_grad()
def encode(model, images: Sequence[np.ndarray], as_channels: bool = False):
    """Features of uint8 images.

    Args:
        as_channels: their channels are a slice and its neighbours already.
    """
    processor = ParseProcessor.of(model.config)
    show = brightness if model.config.channels == "slices" and not as_channels else np.asarray
    return model.encode_images(torch.stack([processor.image(show(image)) for image in images]))


@torch.no_grad()
def segment_encoded(
    model, features, image: np.ndarray, prompts: Sequence[str], *, targets=None, kind="", threshold=0.5, p_value=None,
    overlap="keep", seed=0,
) -> list[Region]:  # fmt: skip
    """`segment_image` with the features of its one image."""
    processor, texts = ParseProcessor.of(model.config), model.encode_prompts(prompts)
    rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    found: list[Region] = []
    # In the published v1 the prompts of a call influence each other.
    size = len(prompts) if getattr(model.config, "compat", None) == "reference" else PROMPT_BATCH
    for start in range(0, len(prompts), size):
        part = range(start, min(start + size, len(prompts)))
        output = model.segment_slices(features, texts.select(part), seed=seed)
        maps = processor.restore(output.mask_logits[0], image.shape[:2]).float().cpu().numpy()
        for row, probability, existence in zip(part, maps, output.existence[0].tolist(), strict=True):
            target, presence, p = (targets or prompts)[row], existence if existence == existence else None, None
            if presence is not None:
                probability = probability * (presence > threshold)
            elif shapes := presence_distributions(kind, target) if kind else None:
                p = presence_p_value(mask_statistics(probability, rgb), shapes)
                if p_value is not None and p < p_value:
                    probability = np.zeros_like(probability)
            prompt = prompts[row] if prompts[row] != target else ""
            region = Region(target, presence=presence, p_value=p, prompt=prompt, probability=probability)
            found.append(_drawn(region, probability > 0.5))
    return found if overlap == "keep" else _shared_out(found, overlap)


def _drawn(region: Region, mask: np.ndarray) -> Region:
    """A region with its mask, the box around it, and the mean probability in it as confidence."""
    if not mask.any():
        return replace(region, mask=mask, box_xyxy_px=None, confidence=None)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = tuple(float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    certain = float(region.probability[mask].mean(dtype=np.float64))
    return replace(region, mask=mask, box_xyxy_px=box, confidence=min(1.0, certain))


def score(region: Region) -> float:
    """What decides between targets: existence, else the p-value, else the mean probability in the mask."""
    if region.presence is not None:
        return region.presence
    return region.p_value if region.p_value is not None else region.confidence or 0.0


def recognize(
    model, image: np.ndarray, modality: str, site: str = "", *, threshold: float = 0.5, p_value=P_VALUE, seed: int = 0
) -> list[Region]:
    """Which of the known targets of this kind of image are there, without being asked for any.

    Every target of the image type is asked for at once; what is not there, or covered by a surer one, goes; pixels
    claimed by several are shared out. v2 goes by its existence score, v1 by the K-S test (`p_value`, None keeps all).

    Args:
        modality, site: or an image type as `modality`, such as "CT-Abdomen"; see `image_type`.

    Returns:
        What was found, the surest first; no two masks overlap.

    Raises:
        TargetError: no list of targets for this kind of image.
    """
    kind = image_type(modality, site)
    targets = recognisable(kind)
    prompts = [wording(target, kind, modality, site) for target in targets]
    options = dict(threshold=threshold, p_value=p_value, overlap="nms", seed=seed)
    found = segment_image(model, image, prompts, kind=kind, targets=targets, **options)
    return sorted((f for f in found if f.mask.any()), key=lambda f: -score(f))


def known_type(modality: str, site: str) -> str:
    """The image type, see `image_type`; "" where there is none."""
    try:
        return image_type(modality, site) if modality else ""
    except TargetError:
        return ""


def hierarchy(found: Sequence[Region]) -> dict:
    """Targets below their categories, {"organ": {"score": ..., "below": {"kidney": ...}}}.

    The score of a category is that of itself where it was found, else the best below it: an organ is there where one
    of its parts is.
    """
    tree: dict = {}
    for one in sorted(found, key=lambda f: len(lineage(f.phrase))):
        line, branch = lineage(one.phrase) or (one.phrase,), tree
        for name in line:
            node = branch.setdefault(name, {"score": 0.0, "below": {}})
            node["score"] = max(node["score"], score(one))
            branch = node["below"]
    return tree


def as_prediction(
    found: Sequence[Region], geometry=None, seconds: float = 0.0, model: str = "", image: ImageSource | None = None
) -> Prediction:
    """Regions ready to be saved, without their probability maps; targets without a mask keep their presence."""
    regions = tuple(replace(one, probability=None) for one in found)
    return Prediction(sentence(regions), regions, geometry, {"segment": seconds}, model, image=image)


def sentence(regions: Sequence[Region], voxels: Sequence[int] | None = None) -> str:
    """What was found and what was not, in words.

    Args:
        voxels: of each region, where they are counted already.
    """
    sizes = [int(region.mask.any()) for region in regions] if voxels is None else voxels
    found = [region.phrase for region, size in zip(regions, sizes, strict=True) if size]
    missing = [region.phrase for region, size in zip(regions, sizes, strict=True) if not size]
    parts = [f"Found: {', '.join(found)}."] * bool(found) + [f"Not found: {', '.join(missing)}."] * bool(missing)
    return " ".join(parts)


def row_of(region: Region) -> dict:
    """Plain numbers of a region for a table, with the place in the hierarchy of targets."""
    return {
        "target": region.phrase,
        "prompt": region.prompt or region.phrase,
        "pixels": int(region.mask.sum()),
        "presence": region.presence,
        "p_value": region.p_value,
        "hierarchy": list(lineage(region.phrase)),
    } | ({"remark": remark} if (remark := contradiction(region)) else {})


def _shared_out(found: list[Region], overlap: str) -> list[Region]:
    by_row = {str(row): one.probability for row, one in enumerate(found)}
    if overlap == "nms":
        kept = set(suppress_covered(by_row, {str(row): score(one) for row, one in enumerate(found)}))
        by_row = {row: probability for row, probability in by_row.items() if row in kept}
    masks = combine_masks({row: probability for row, probability in by_row.items() if (probability > 0.5).any()})
    nothing = np.zeros(found[0].mask.shape, dtype=bool)
    return [_drawn(one, masks.get(str(row), nothing)) for row, one in enumerate(found)]


__all__ = ["OVERLAPS", "P_VALUE", "PromptError", "as_prediction", "hierarchy", "recognize", "row_of", "segment_image"]
