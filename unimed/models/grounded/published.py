"""`predict_forward` as users of UniBiomed and Sa2VA know it."""

from __future__ import annotations

import numpy as np

from unimed.io.images import load as load_image
from unimed.models.grounded.frames import KEY_FRAMES, ask, propagate
from unimed.models.grounded.processing import PromptError
from unimed.models.heads.mask import resize_mask_logits
from unimed.models.heads.sam2 import Sam2MaskHead
from unimed.tokens import IMAGE_PLACEHOLDER


def predict_published(model, image, text, past_text, mask_prompts, video, max_new_tokens) -> dict:
    """See `GroundedPredictor.predict_forward`."""
    model.eval()
    if video is not None and (mask_prompts is not None or image is not None):
        raise PromptError("give an image (with or without mask_prompts) or a video, not both")
    if mask_prompts is not None and image is None:
        raise PromptError("mask_prompts need an image")
    shown = image is not None or video is not None
    if shown and IMAGE_PLACEHOLDER in text and past_text:
        raise PromptError(f"{IMAGE_PLACEHOLDER} belongs to the first turn only; past_text already holds one")
    if shown and IMAGE_PLACEHOLDER not in text and model.processor.image_token not in past_text:
        raise PromptError(f"the text must hold {IMAGE_PLACEHOLDER} once where an image or a video is given")
    if video is not None:
        return _video(model, video, text, past_text, max_new_tokens)
    return _image(model, image, text, past_text, mask_prompts, max_new_tokens)


def _image(model, image, text, past_text, mask_prompts, max_new_tokens) -> dict:
    source = None if image is None else load_image(image)
    regions = None
    if mask_prompts is not None:
        if len(mask_prompts) != 1:
            raise PromptError(f"mask_prompts holds one array [N, H, W] for the one image, got {len(mask_prompts)}")
        masks = np.asarray(mask_prompts[0])
        regions = list(masks[None] if masks.ndim == 2 else masks)
    assembly = model.processor.assembly(literal=False, past_text=past_text)
    try:
        assembly.add(source, [("user", text if source is not None else text.replace(IMAGE_PLACEHOLDER, ""))], regions)
    except PromptError as error:
        raise PromptError(f"mask_prompts: {error}" if regions is not None else str(error)) from error
    rows, features = model._decode(assembly.batch(), max_new_tokens=max_new_tokens)
    masks = []
    if source is not None:
        features.encode([0] if model.seg_states(rows[0]) is not None else [])
        logits, _, _ = model._masks_of(rows[0], features.get(0), source.rgb.shape[:2])
        # Sigmoid above one half, as published; no presence gate.
        masks = [mask[None] for mask in (logits > 0).cpu().numpy()]
    return _result(model, rows[0], masks)


def _video(model, video, text, past_text, max_new_tokens) -> dict:
    if not isinstance(model.mask_head, Sam2MaskHead):
        raise PromptError(
            "this model's mask head has no memory for frames; use model.predict(volume, text), slice by slice"
        )
    frames = [load_image(frame).rgb for frame in video]
    if not frames:
        raise PromptError("the video has no frame")
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) > 1:
        raise PromptError(f"all frames must have one size, found {sorted(sizes)}")
    (row,) = ask(model, frames[:KEY_FRAMES], [text.strip()], max_new_tokens, past_text=past_text, literal=False)
    states = model.seg_states(row)
    if states is None:
        return _result(model, row, [])
    size = sizes.pop()
    stacks = [np.zeros((len(frames), *size), dtype=bool) for _ in states]
    prompted = range(min(KEY_FRAMES, len(frames)))
    for frame, output in propagate(model, frames, model.seg_projection(states), prompted):
        masks = (resize_mask_logits(output.logits, size, model.mask_head.image_size) > 0).cpu().numpy()
        for stack, mask in zip(stacks, masks, strict=True):
            stack[frame] = mask
    return _result(model, row, stacks)


def _result(model, row, masks) -> dict:
    return {"prediction": model.processor.raw_text(row.ids), "prediction_masks": masks}
