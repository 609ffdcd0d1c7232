"""Inputs of a backbone that reads through its own processor: ids, pixels, sizes and types of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

#: End of the names of inputs with one number per token; all others belong to the images.
PER_TOKEN = "token_type_ids"
_TEXT = ("input_ids", "attention_mask", "labels")


class NativeInputs:
    """The processor of an image-text model of transformers, as a `GroundedProcessor` asks it.

    Args:
        processor: of transformers; its tokenizer is that of the grounded processor.
        family: `unimed.models.backbones.families.Family` of the model.
    """

    def __init__(self, processor, family):
        self.processor, self.family = processor, family
        #: Tokens that act, longest first; in what users type they are broken.
        words = processor.tokenizer
        tokens = {*words.all_special_tokens, *words.get_added_vocab()}
        self.control = sorted(
            (token for token in tokens if len(token) > 1 and not token.isspace()), key=len, reverse=True
        )

    def __deepcopy__(self, memo):
        return self  # transformers copies processors to write them; vocabularies need no copy

    def reader(self, images: Sequence[np.ndarray], opening: str = "") -> Reader:
        """What reads the text of one question about `images` (HxWx3 uint8)."""
        return Reader(self, images, opening)

    def padded(self, rows: Sequence[Mapping], lengths: Sequence[int], width: int, left: bool) -> dict:
        """Inputs of single questions as those of a batch.

        Args:
            rows: inputs beside ids, as `Reader.inputs` has them.
            lengths: tokens of each row, answers included. width: of the padded batch. left: on which side is padded.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        batch = {}
        for name in names:
            if name.endswith(PER_TOKEN):
                batch[name] = torch.stack([
                    self._types(row.get(name), name, length, width, left)
                    for row, length in zip(rows, lengths, strict=True)
                ])  # fmt: skip
            else:
                parts = [row[name] for row in rows if name in row]
                if name in self.family.numbers:
                    parts = counted(parts, [row[self.family.numbers[name]] for row in rows if name in row])
                batch[name] = joined(parts, self.family.fill.get(name, 0), self.family.along.get(name, 0))
        return batch

    def _types(self, given, name, length, width, left) -> torch.Tensor:
        given = torch.zeros(0, dtype=torch.long) if given is None else given[0]
        answer_types = torch.full((length - len(given),), self.family.answer.get(name, 0) if len(given) else 0)
        types = torch.cat([given, answer_types.to(given.dtype)])
        return torch.nn.functional.pad(types, (width - length, 0) if left else (0, width - length))


class Reader:
    """Reads the text of one question; `inputs` holds what the model wants beside its ids."""

    def __init__(self, native: NativeInputs, images: Sequence[np.ndarray], opening: str):
        self.native, self.images, self.opening = native, list(images), opening
        self.inputs: dict[str, torch.Tensor] = {}

    def __call__(self, text: str) -> list[int]:
        text = self.opening + text
        if not self.images:
            return self.native.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        # Pictures, not arrays: 3 x W pixels look like an array with channels first.
        images = [Image.fromarray(image) for image in self.images]
        read = self.native.processor(
            images=[images] if self.native.family.nested else images, text=[text], return_tensors="pt",
            add_special_tokens=False, **self.native.family.asks,
        )  # fmt: skip
        self.inputs = {name: value for name, value in read.items() if torch.is_tensor(value) and name not in _TEXT}
        return read["input_ids"][0].tolist()


def counted(parts: Sequence[torch.Tensor], places: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Indices into the first two sides of `places`, counted on from row to row; what is below 0 stays."""
    starts = np.cumsum([0, *(one.shape[0] * one.shape[1] for one in places)]).tolist()
    return [torch.where(part >= 0, part + start, part) for part, start in zip(parts, starts, strict=False)]


def joined(parts: Sequence[torch.Tensor], fill: float = 0, axis: int = 0) -> torch.Tensor:
    """Tensors one after the other along an axis; other sides are filled up to the longest, as processors do it."""
    if axis == 0 and parts[0].ndim > 1:
        sides = [max(part.shape[side] for part in parts) for side in range(1, parts[0].ndim)]
        parts = [
            torch.nn.functional.pad(
                part, [n for side, now in zip(sides[::-1], part.shape[:0:-1], strict=True) for n in (0, side - now)],
                value=fill,
            )
            for part in parts
        ]  # fmt: skip
    return torch.cat(list(parts), dim=axis)
