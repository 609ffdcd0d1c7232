"""Pictures to squares of the model's size and back, and prompts to ids: what data workers need of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from transformers import BatchFeature

from unimed.io.images import load as load_image
from unimed.io.slices import SliceGrid
from unimed.models.boltzformer.postprocessing import enlarge_bilinear, upsample
from unimed.models.boltzformer.tokenizing import SEPARATOR, check_prompts, tokenize
from unimed.registry import keywords, refuse_options


class ParseProcessor:
    """Knows the sizes and the tokenizer of a BoltzFormer, not its weights.

    Args:
        image_size: side of the model's images, px. text_length: most tokens of a prompt.
        smooth: pictures are shrunk with antialiasing and masks enlarged linearly (v1), instead of the other way round.
        windows: CT windows of the model, site -> (level, width) in HU.
    """

    def __init__(self, tokenizer, image_size: int, text_length: int, smooth: bool = False, windows=None):
        self.tokenizer, self.image_size, self.text_length = tokenizer, image_size, text_length
        self.smooth, self.windows = smooth, windows

    @classmethod
    def of(cls, config, tokenizer=None) -> ParseProcessor:
        """That of a model's configuration; without a tokenizer it takes images alone."""
        v1 = config.model_type == "unimed_biomedparse_v1"
        windows = getattr(config, "ct_windows", None)
        return cls(tokenizer, config.image_size, getattr(config, "text_length", 0), smooth=v1, windows=windows)

    def __call__(
        self,
        images=None,
        text=None,
        *,
        site: str = "",
        return_tensors: str = "pt",
        padding: bool = True,
        truncation: bool = True,
        max_length: int | None = None,
        **others,
    ):
        """What `forward` of the model takes: `pixel_values` [B, 3, S, S], `input_ids` and `attention_mask` [P, L], and
        `num_prompts` [B], the prompts of each image one after the other (a `BatchFeature`).

        Args:
            images: an image or several: path, PIL image or array.
            text: prompts for each image: a text or a list of texts per image, several in one text joined by "[SEP]". A
                single text is asked of all images.
            truncation, max_length: longer prompts are always cut, at the length the model was trained with.

        Raises:
            TypeError: an option that is not listed here.
            ValueError: another number of texts than of images, or a prompt that is empty.
            ImageError, ReadError: an image that cannot be read.
        """
        refuse_options(others, keywords(type(self).__call__), "the processor")
        if max_length not in (None, self.text_length):
            raise ValueError(
                f"texts are read up to {self.text_length} tokens, got max_length {max_length}; leave it out"
            )
        if images is None or text is None or return_tensors != "pt":
            raise ValueError("give images and text; return_tensors is 'pt'")
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        texts = [text] * len(images) if isinstance(text, str) else [text] if len(images) == 1 else list(text)
        if len(texts) != len(images):
            raise ValueError(f"{len(texts)} texts for {len(images)} images; give one, or a list of prompts, per image")
        prompts = []
        for one in texts:
            parts = [part for entry in ([one] if isinstance(one, str) else one) for part in entry.split(SEPARATOR)]
            prompts.append(check_prompts([part.strip() for part in parts]))
        return BatchFeature(
            {
                "pixel_values": torch.stack(
                    [self.image(load_image(image, site=site, windows=self.windows).rgb) for image in images]
                ),
                **self.prompts([prompt for group in prompts for prompt in group]),
                "num_prompts": torch.tensor([len(group) for group in prompts]),
            }
        )

    def prompts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` [P, L]."""
        return tokenize(self.tokenizer, texts, self.text_length)

    def image(self, array: np.ndarray) -> torch.Tensor:
        """uint8 HxW or HxWx3 -> float [3, S, S] in 0..255: zeros around to a square, bicubic.

        Raises:
            ValueError: another type or shape.
        """
        array = np.asarray(array)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
            raise ValueError(f"an image is uint8 HxW or HxWx3, got {array.dtype} {array.shape}; window it first")
        channels = np.repeat(array[None], 3, 0) if array.ndim == 2 else np.moveaxis(array, 2, 0)
        return self._grid(*channels.shape[1:]).prepare(channels.astype(np.float32), self.smooth).clamp(0, 255)

    def _grid(self, height: int, width: int) -> SliceGrid:
        return SliceGrid((1, height, width), 0, self.image_size)

    def labels(self, mask: np.ndarray) -> torch.Tensor:
        """HxW of bool or instance numbers -> int32 [S, S], nearest; what would vanish is kept by its largest value."""
        padded = np.pad(np.ascontiguousarray(mask).astype(np.int32), self._grid(*mask.shape).pad)
        padded = torch.from_numpy(padded)[None, None].float()
        size = (self.image_size, self.image_size)
        if tuple(padded.shape[-2:]) == size:
            return padded[0, 0].int()
        small = F.interpolate(padded, size=size, mode="nearest")
        if bool(padded.any()) and not bool(small.any()):
            small = F.adaptive_max_pool2d(padded, size)
        return small[0, 0].int()

    def restore(self, logits: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Logits [P, h, w] of a square -> probabilities [P, H, W] in the grid of the picture."""
        side = max(shape)
        if self.smooth:
            grown = torch.stack([enlarge_bilinear(one, side) for one in logits])
        else:
            grown = upsample(logits, side)
        return self._grid(*shape).cut(grown).float().sigmoid()


def brightness(rgb: np.ndarray) -> np.ndarray:
    """HxWx3 -> HxW, the weights of ITU-R BT.601; grey pictures stay as they are."""
    return rgb if rgb.ndim == 2 else np.rint(rgb @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
