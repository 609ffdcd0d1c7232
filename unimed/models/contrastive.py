"""The names that UniMed-CLIP's own scripts import of their copy of open_clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

#: Arguments of the published function that say what the file itself says, or how the vendored code was started.
IGNORED = ("precision", "force_quick_gelu", "mean", "std", "inmem", "text_encoder_name", "jit", "output_dict")


def create_model_and_transforms(
    model_name: str, pretrained: str | None = None, *, device: str = "cpu", **published
) -> tuple[nn.Module, Callable, Callable]:
    """open_clip's module of a published checkpoint with its transforms, as the published snippets call it.

    Args:
        model_name: "ViT-B-16-quickgelu" and the like; sizes are read off the weights, so it is only for the message.
        pretrained: checkpoint, converted folder, hub id or `open_clip:NAME/WEIGHTS`, as `unimed.load` takes them.
        published: further arguments of the published call (`IGNORED`); anything else is refused.

    Returns:
        (module in evaluation mode with `encode_image`, `encode_text`, `logit_scale`; transform of training: image ->
        uint8 [3, S, S]; transform of evaluation: path, PIL image or array -> float32 [3, S, S], normalized). Features
        are not of unit length, as published.

    Raises:
        ValueError: no `pretrained`, an unknown argument, or a model that is no contrastive one.
    """
    from unimed.models.auto import load

    if unknown := set(published) - set(IGNORED):
        raise ValueError(f"create_model_and_transforms takes no {', '.join(sorted(unknown))}; it ignores {IGNORED}")
    if not pretrained:
        raise ValueError(f"{model_name}: give pretrained=, a checkpoint or folder; new models are `Clip` in a config")
    model = load(pretrained, device=device)
    if not hasattr(model, "towers"):
        raise ValueError(f"{pretrained} holds {type(model).__name__}, which does not compare images with texts")
    module, processor = model.towers, model.processor
    module.processor = processor
    return module, processor.train_image, processor.image


def get_tokenizer(module: nn.Module) -> Callable[..., torch.Tensor]:
    """The tokenizer of a module of `create_model_and_transforms`: text or texts -> int64 [N, L], padded to the context.

    Takes and ignores the published argument `context_length`.
    """

    def tokenize(texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        return module.processor.texts([texts] if isinstance(texts, str) else list(texts), "max_length")[0]

    return tokenize
