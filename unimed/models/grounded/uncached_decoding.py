"""How the released code decodes: everything anew for every token. Kept to measure against, not to use."""

from __future__ import annotations

import torch

from unimed.io.images import load as load_image
from unimed.models.grounded.generation import Generated


@torch.no_grad()
def decode_without_cache(model, image, text: str, max_new_tokens: int = 64):
    """Token ids and boxes of one answer, CLIP and the whole prompt run again for every token, SAM again per question.

    Greedy, as `predict`; the answers are the same.

    Returns:
        ids of the answer, and boxes as (xyxy in pixels, standard deviation or None, probability) per [BOX].
    """
    model.eval()
    processor, source = model.processor, load_image(image)
    size = source.rgb.shape[:2]
    inputs = processor(images=source, text=text).to(model.device)
    prompt, pixels = inputs["input_ids"][0].tolist(), inputs["pixel_values"]
    generated: list[int] = []
    output = None
    for _ in range(max_new_tokens):
        row = torch.tensor([prompt + generated], device=model.device)
        output = model(row, pixel_values=pixels, return_logits=False)
        generated.append(int(model.lm_head(output.hidden[:, -1]).argmax()))
        if generated[-1] in processor.stop_ids or processor.stopped(generated):
            break
    row = torch.tensor([prompt + generated], device=model.device)
    hidden = model(row, pixel_values=pixels, return_logits=False).hidden
    places = row == model.config.box_token_id
    places[:, : len(prompt)] = False
    states = list(model.prompting_states(hidden, places))
    features = model.mask_head.encode(inputs["mask_pixel_values"])
    row_generated = Generated(generated, states, [model.config.box_token_id] * len(states), [1.0] * len(states), True)
    return generated, model._boxes_of(row_generated, features, size)
