"""The two inputs of UniBiomed and Sa2VA that are no plain image: regions drawn by the user, and frames or slices.

The wording around a region and the place of its tokens are what those checkpoints were trained with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from unimed.chat import TEMPLATES
from unimed.models.grounded.generation import Generated, generate
from unimed.models.grounded.images import read_image
from unimed.models.grounded.processing import PromptError
from unimed.models.heads.mask import resize_mask_logits
from unimed.models.heads.sam2 import Sam2MaskHead
from unimed.models.heads.sam2_memory import MaskPropagation
from unimed.tokens import IMAGE_PLACEHOLDER, REGION_END, REGION_START

#: The language model reads this many frames, and the masks of as many start the propagation.
KEY_FRAMES = 5


def predict_published(model, image, text, past_text, mask_prompts, video, max_new_tokens) -> dict:
    """`predict_forward` with `mask_prompts` or `video`.

    Args:
        mask_prompts: a list with one bool array [N, H, W], N regions of the image.
        video: frames of one size, or the slices of a volume, in order.

    Returns:
        see `GroundedPredictor.predict_forward`; masks are [frames, H, W].

    Raises:
        PromptError: regions of another size than the image, empty regions, regions together with a video, frames of
            different sizes, or a mask head without memory.
    """
    model.eval()
    if video is not None and mask_prompts is not None:
        raise PromptError("region prompts belong to one image; give either mask_prompts or video")
    if IMAGE_PLACEHOLDER not in text or past_text:
        raise PromptError(f"regions and frames need {IMAGE_PLACEHOLDER} in the text and no past_text")
    if video is not None:
        return _video(model, video, text, max_new_tokens)
    return _regions(model, image, text, mask_prompts, max_new_tokens)


def region_cells(masks: np.ndarray, side: int) -> torch.Tensor:
    """Which of the side x side image tokens lie in each region: bool [N, side, side] of masks [N, H, W].

    The nearest pixel of each cell decides, as published; a region too small to meet one takes every cell it touches
    (published code gives it no token at all).
    """
    regions = torch.from_numpy(np.ascontiguousarray(masks)).float()[:, None]
    cells = F.interpolate(regions, (side, side), mode="nearest")[:, 0] > 0
    lost = ~cells.flatten(1).any(1)
    if bool(lost.any()):
        cells[lost] = F.adaptive_max_pool2d(regions[lost], (side, side))[:, 0] > 0
    return cells


def region_text(processor, cells: torch.Tensor) -> str:
    """What stands behind the image in the question: each region with a place for its tokens."""
    counts = cells.flatten(1).sum(1).tolist()
    named = ", ".join(
        f"region{number}{REGION_START}{processor.image_token * count}{REGION_END}"
        for number, count in enumerate(counts, start=1)
    )
    return f"\nThere are {len(counts)} part regions in the picture: {named}.\n"


def region_tokens(tokens: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Tokens under each region [sum of counts, D], taken from the last tile of `tokens` [T, n, D] (the thumbnail)."""
    return torch.cat([tokens[-1][one.flatten().to(tokens.device)] for one in cells])


def _checked_regions(mask_prompts, size) -> np.ndarray:
    if len(mask_prompts) != 1:
        raise PromptError(f"mask_prompts holds one array [N, H, W] for the one image, got {len(mask_prompts)}")
    masks = np.asarray(mask_prompts[0])
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or masks.shape[1:] != tuple(size):
        raise PromptError(
            f"mask_prompts have shape {masks.shape}, the image needs [N, {size[0]}, {size[1]}]; resize the masks"
        )
    masks = masks > 0
    empty = [str(index + 1) for index, mask in enumerate(masks) if not mask.any()]
    if empty or not len(masks):
        raise PromptError(f"mask_prompts: region {', '.join(empty) or 'list'} is empty; leave it out")
    return masks


def _regions(model, image, text, mask_prompts, max_new_tokens) -> dict:
    if image is None:
        raise PromptError("mask_prompts need an image")
    source = read_image(image)
    masks = _checked_regions(mask_prompts, source.rgb.shape[:2])
    pixels = model.processor.mask_pixels(source.rgb)[None].to(model.device)
    features = model.mask_head.encode(pixels)
    tiles = model.processor.tiles(source.rgb)
    tokens, _ = model.image_tokens(None if tiles is None else tiles.to(model.device), features)
    cells = region_cells(masks, int(round(tokens.shape[1] ** 0.5)))
    units = model.processor.image_text(len(tokens)) + region_text(model.processor, cells)
    all_tokens = torch.cat([tokens.flatten(0, 1), region_tokens(tokens, cells)])
    row = answer(model, text.replace(IMAGE_PLACEHOLDER, units), all_tokens, max_new_tokens)
    logits, _, _ = model._masks_of(row, features, 0, source.rgb.shape[:2])
    return _result(model, row, [mask[None] for mask in (logits > 0).cpu().numpy()])


def _video(model, video, text, max_new_tokens) -> dict:
    if not isinstance(model.mask_head, Sam2MaskHead):
        raise PromptError(
            "this model's mask head has no memory for frames; use unimed.inference.predict_volume, slice by slice"
        )
    frames = [read_image(frame) for frame in video]
    if not frames:
        raise PromptError("the video has no frame")
    sizes = {frame.rgb.shape[:2] for frame in frames}
    if len(sizes) > 1:
        raise PromptError(f"all frames must have one size, found {sorted(sizes)}")
    row = ask_frames(model, [frame.rgb for frame in frames[:KEY_FRAMES]], text, max_new_tokens)
    prompts = seg_prompts(model, row)
    if prompts is None:
        return _result(model, row, [])
    size = sizes.pop()
    stacks = [np.zeros((len(frames), *size), dtype=bool) for _ in prompts]
    rgb = [frame.rgb for frame in frames]
    for frame, output in propagate(model, rgb, prompts, range(min(KEY_FRAMES, len(frames)))):
        masks = (resize_mask_logits(output.logits, size, model.mask_head.image_size) > 0).cpu().numpy()
        for stack, mask in zip(stacks, masks, strict=True):
            stack[frame] = mask
    return _result(model, row, stacks)


def ask_frames(model, frames: Sequence[np.ndarray], text: str, max_new_tokens: int) -> Generated:
    """Put a question about several frames (HxWx3 uint8, one tile each); `text` holds "<image>" once."""
    processor = model.processor
    tiles = torch.cat([processor.tiles(frame, max_tiles=1) for frame in frames]).to(model.device)
    tokens, _ = model.image_tokens(tiles)
    units = "\n".join(processor.image_text(1) for _ in frames)
    return answer(model, text.replace(IMAGE_PLACEHOLDER, units).strip(), tokens.flatten(0, 1), max_new_tokens)


def seg_prompts(model, row: Generated) -> torch.Tensor | None:
    """Prompt vectors [N, C] of the [SEG] tokens of an answer, None where it has none."""
    states = [s for s, t in zip(row.states, row.state_ids, strict=True) if t == model.config.seg_token_id]
    return model.seg_projection(torch.stack(states)) if states else None


@torch.no_grad()
def propagate(model, frames: Sequence[np.ndarray], prompts: torch.Tensor, prompted) -> Iterator[tuple]:
    """(frame, `MaskOutput` of N objects), the prompted frames first and then the others in order.

    Every frame is encoded once. Frames before the first prompted one are reached by going backwards from it.
    """
    prompted = sorted(prompted)
    tracker = MaskPropagation(model.mask_head, len(frames))
    pixels_of = model.processor.mask_pixels

    def encode(frame):
        return model.mask_head.encode(pixels_of(frames[frame])[None].to(model.device))

    for frame in prompted:
        yield frame, tracker.prompted(frame, encode(frame), prompts)
    known = set(prompted)
    for frame in range(prompted[0] + 1, len(frames)):
        if frame not in known:
            yield frame, tracker.propagated(frame, encode(frame))
    if prompted[0] > 0:
        backwards = MaskPropagation(model.mask_head, len(frames))
        # Mirrored indices turn the past into the future, which is what the time codes of the memory know.
        mirrored = {len(frames) - 1 - frame: memory for frame, memory in tracker.conditioning.items()}
        backwards.conditioning.update(sorted(mirrored.items()))
        for frame in range(prompted[0] - 1, -1, -1):
            yield frame, backwards.propagated(len(frames) - 1 - frame, encode(frame))


@torch.no_grad()
def answer(model, asked: str, image_tokens: torch.Tensor, max_new_tokens: int) -> Generated:
    """Greedy answer to one question whose image tokens were computed before."""
    processor = model.processor
    ids = torch.tensor([processor._ids(TEMPLATES[processor.template].prompt([("user", asked)]))], device=model.device)
    return generate(
        model, model.merge(ids, image_tokens), torch.ones_like(ids),
        keep_states_of=[model.config.seg_token_id], stop_ids=processor.stop_ids, stopped=processor.stopped,
        max_new_tokens=max_new_tokens,
    )[0]  # fmt: skip


def _result(model, row, masks) -> dict:
    return {"prediction": model.processor.raw_text(row.ids), "prediction_masks": masks}
