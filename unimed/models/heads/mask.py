"""Mask decoders (mask heads): what each gives and takes, and from low-resolution logits to the pixels of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from unimed.files import write_atomic
from unimed.registry import DECODERS, look_up


@dataclass
class MaskFeatures:
    """Features of B images, computed once and used by every phrase.

    `embedding` is [B, C, h, w]; `high_resolution` holds finer maps of the same images, coarse to fine order as the
    head likes it; `pixels` is [B, 3, S, S] where a head looks at the image again; `tokens` are the backbone's
    image tokens [N, D] of each image, None where the language model does not read it.
    """

    embedding: torch.Tensor
    high_resolution: tuple[torch.Tensor, ...] = ()
    pixels: torch.Tensor | None = None
    tokens: tuple[torch.Tensor | None, ...] | None = None

    def __len__(self) -> int:
        return self.embedding.shape[0]

    def select(self, image: int) -> MaskFeatures:
        """The features of one image, batch dimension kept."""
        pixels = None if self.pixels is None else self.pixels[image : image + 1]
        return MaskFeatures(
            self.embedding[image : image + 1],
            tuple(level[image : image + 1] for level in self.high_resolution),
            pixels,
            None if self.tokens is None else self.tokens[image : image + 1],
        )

    def copied(self) -> MaskFeatures:
        """The same in memory of its own: a selection keeps all images of its batch alive."""
        return replace(
            self, embedding=self.embedding.clone(),
            high_resolution=tuple(level.clone() for level in self.high_resolution),
            pixels=None if self.pixels is None else self.pixels.clone(),
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors but the image tokens."""
        parts = (self.embedding, *self.high_resolution, *(() if self.pixels is None else (self.pixels,)))
        return sum(part.nbytes for part in parts)


@dataclass
class MaskOutput:
    """Masks of N prompts: `logits` [N, h, w], `iou` [N] in [0, 1], `object_logits` [N] (positive: it is there).

    `candidates` [N, K, h, w] and `candidate_iou` [N, K] are what the choice was made from; `pointers` [N, C] the
    decoder tokens of the chosen masks, where the head has them. `deep_logits` [N, K, h, w] are masks of coarser scales,
    fine to coarse, which are supervised too.
    """

    logits: torch.Tensor
    iou: torch.Tensor
    object_logits: torch.Tensor
    candidates: torch.Tensor | None = None
    candidate_iou: torch.Tensor | None = None
    pointers: torch.Tensor | None = None
    deep_logits: torch.Tensor | None = None


class MaskDecoder(nn.Module):
    """Contract of a mask decoder: an image encoder, and a decoder prompted by language vectors.

    Registered with `@mask_decoder(ConfigClass)` and built as `cls(config)`; a `GroundedMLLM` builds it by the
    `model_type` of its `mask_config`. `decode_tokens` and `decode_boxes` may be left out.
    """

    config: PreTrainedConfig
    #: Features that `unimed.models.heads.mask.FeatureCache` keeps while the encoder is frozen; None keeps none.
    cache: FeatureCache | None = None
    #: Whether `decode` also reads `MaskFeatures.tokens`; `config.token_dim` is then their width.
    reads_image_tokens = False
    #: Whether training also asks for masks of the boxes around the targets (`decode_boxes` is learnt, not published).
    learns_boxes = False
    #: Whether `decode` also takes `boxes_xyxy` [N, 4], so that a [BOX] of the same phrase says where a [SEG] lies.
    guided_by_boxes = False
    #: Whether `decode_stack` reads the slices of a volume together.
    reads_volumes = False

    @property
    def image_size(self) -> int:
        """Side S in pixels of the square the encoder sees."""
        return self.config.image_size

    @property
    def embedding_dim(self) -> int:
        """Channels C of `MaskFeatures.embedding`."""
        raise NotImplementedError

    @property
    def prompt_dim(self) -> int:
        """Length of a prompt vector."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Freeze what the configuration freezes; called after loading, which forgets it."""

    def encode(self, pixels: torch.Tensor) -> MaskFeatures:
        """[B, 3, S, S] -> features of B images; one call per image, whatever the number of phrases."""
        raise NotImplementedError

    def decode(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> MaskOutput:
        """Masks of N language vectors [N, C]; `image_index` [N] says which image each belongs to."""
        raise NotImplementedError

    def decode_tokens(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Output tokens [N, T, C] for N language vectors, which box heads read (`box_decoder=True`)."""
        raise NotImplementedError(f"{type(self).__name__} has no output tokens for box heads")

    def decode_boxes(self, features: MaskFeatures, image_index: torch.Tensor, boxes_xyxy: torch.Tensor) -> MaskOutput:
        """Masks of N boxes given in pixels of the square the encoder sees."""
        raise NotImplementedError(f"{type(self).__name__} takes no boxes")

    def decode_stack(self, pixels: torch.Tensor, prompts: torch.Tensor) -> MaskOutput:
        """N * D masks of N language vectors in the slices [D, 3, S, S] of a volume (`reads_volumes`)."""
        raise NotImplementedError(f"{type(self).__name__} reads slices one by one")


def mask_decoder(config: type[PreTrainedConfig]):
    """Decorator: the class is the mask decoder of configurations of this class, found by their `model_type`.

    Raises:
        KeyError: the `model_type` has a decoder already.
    """
    if config.model_type not in CONFIG_MAPPING:
        AutoConfig.register(config.model_type, config)
    return DECODERS.register_module(name=config.model_type)


def build_mask_decoder(config: PreTrainedConfig) -> MaskDecoder:
    """The registered decoder of a configuration.

    Raises:
        RegistryError: no decoder has this `model_type`; the known ones are named.
    """
    return look_up(config.model_type, DECODERS)(config)


def concatenate(outputs: list[MaskOutput]) -> MaskOutput:
    """Join the outputs of several images in order; what one of them lacks (masks of coarser scales) is left out."""
    fields = {}
    for name in MaskOutput.__dataclass_fields__:
        values = [getattr(output, name) for output in outputs]
        fields[name] = None if any(value is None for value in values) else torch.cat(values)
    return MaskOutput(**fields)


def per_image(features: MaskFeatures, image_index: torch.Tensor, decode, chunk: int = 64) -> MaskOutput | None:
    """Run `decode(features_of_one_image, rows)` for every image that has prompts and put the rows back in order.

    Args:
        image_index: [N], the image of each prompt.
        decode: gets the features of one image and the prompt rows [P] that belong to it; P is at most `chunk`, so that
            a hundred phrases need no more memory than `chunk` do.

    Returns:
        outputs in the order of `image_index`; None where there is no prompt at all.
    """
    count = image_index.shape[0]  # `len` of a tensor would fix the number where the decoder is traced
    if len(features) == 1 and count <= chunk:
        # The usual case has nothing to sort, and no look at the values of the index, which a GPU would wait for.
        return decode(features, torch.arange(count, device=image_index.device)) if count else None
    outputs, order = [], []
    for image in image_index.unique().tolist():
        rows = torch.nonzero(image_index == image).flatten()
        for part in rows.split(chunk):
            outputs.append(decode(features.select(image), part))
            order.append(part)
    if not outputs:
        return None
    joined = concatenate(outputs)
    back = torch.argsort(torch.cat(order))
    return MaskOutput(
        **{
            name: None if getattr(joined, name) is None else getattr(joined, name)[back]
            for name in MaskOutput.__dataclass_fields__
        }
    )


def resize_mask_logits(
    logits: torch.Tensor, size: tuple[int, int], through: int | None = None, content: tuple[int, int] | None = None
) -> torch.Tensor:
    """Bilinear resize of [N, h, w] logits to [N, H, W].

    `through` is the side of the square the head saw: SAM-like heads are trained to be read at that resolution, and
    going there first moves logits by more than one unit near edges (measured on the SAM2 of UniBiomed). `content` are
    the rows and columns of that square that hold the image; the rest is padding and is cut off.
    """
    logits = logits[:, None].float()
    if through is not None and logits.shape[-1] != through:
        logits = F.interpolate(logits, (through, through), mode="bilinear", align_corners=False)
    if through is not None and content is not None:
        logits = logits[..., : content[0], : content[1]]
    if logits.shape[-2:] == tuple(size):
        return logits[:, 0]
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0]


class ImageFeatures:
    """Features of the mask head for images [I, 3, S, S], each encoded when it is first asked for.

    Args:
        cache: what keeps features between questions by the content of the pixels, see `GroundedPredictor`; None keeps
            none.
    """

    def __init__(self, mask_head, pixels: torch.Tensor | None, cache=None):
        self.mask_head, self.pixels, self.cache = mask_head, pixels, cache
        self._known: dict[int, MaskFeatures] = {}
        #: Image tokens of the backbone by image, where the decoder reads them.
        self.tokens: dict[int, torch.Tensor] = {}

    def encode(self, images: Iterable[int]) -> None:
        """Encode those of `images` that are not known yet."""
        missing = [image for image in dict.fromkeys(images) if image not in self._known]
        if self.cache is not None:
            keys = {image: ("mask", content_key(self.pixels[image])) for image in missing}
            self._known |= {image: kept for image, key in keys.items() if (kept := self.cache.get(key)) is not None}
            missing = [image for image in missing if image not in self._known]
        size = 1 if self.pixels is None or self.pixels.device.type == "cpu" else 8
        for chunk in (missing[start : start + size] for start in range(0, len(missing), size)):
            encoded = self.mask_head.encode(self.pixels[chunk])
            self._known |= {image: encoded.select(place) for place, image in enumerate(chunk)}
            for image in chunk if self.cache is not None else ():
                kept = self._known[image].copied() if len(chunk) > 1 else self._known[image]
                self.cache.put(keys[image], kept, kept.nbytes)

    def get(self, image: int) -> MaskFeatures | None:
        known = self._known.get(image)
        return known if known is None or not self.tokens else replace(known, tokens=(self.tokens.get(image),))

    def __getitem__(self, images: list[int]) -> MaskFeatures:
        """Embeddings of several images at once."""
        self.encode(images)
        return MaskFeatures(torch.cat([self._known[image].embedding for image in images]))


def content_key(tensor: torch.Tensor) -> str:
    """Digest of shape, type and values of a tensor."""
    values = tensor.detach().contiguous().cpu()
    digest = hashlib.sha1(f"{tuple(values.shape)} {values.dtype} ".encode(), usedforsecurity=False)
    digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureCache:
    """Features of images that were seen before, for encoders that do not change (frozen, in evaluation mode).

    Kept in half precision on the CPU; the oldest go first.

    Args:
        images: most images kept in memory.
        folder: where they are kept beyond this process, one file per image; for the weights of one encoder alone (see
            `unimed.models.weights.weights_digest`). None keeps them in memory only.
    """

    def __init__(self, images: int = 2000, folder: str | Path | None = None):
        self.images = images
        self.folder = None if folder is None else Path(folder)
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, pixels: torch.Tensor, encode) -> torch.Tensor:
        """Embedding [B, C, h, w] of `pixels` [B, 3, S, S]; `encode` is asked for those not seen yet."""
        keys = [content_key(one) for one in pixels]
        for key in set(keys) - set(self._kept):
            if (found := self._read(key)) is not None:
                self._kept[key] = found
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._kept}
        if first:
            # Several images at once do not fit into the caches of a CPU: one by one takes less time and memory there.
            size = 1 if pixels.device.type == "cpu" else len(first)
            missing = list(first)
            for part in (missing[start : start + size] for start in range(0, len(missing), size)):
                fresh = encode(pixels[[first[key] for key in part]]).detach()
                for key, embedding in zip(part, fresh, strict=True):
                    self._kept[key] = embedding.half().cpu()
                    self._write(key)
        joined = torch.stack([self._kept[key] for key in keys]).to(pixels.device, pixels.dtype)
        while len(self._kept) > self.images:
            self._kept.pop(next(iter(self._kept)))
        return joined

    def _read(self, key: str) -> torch.Tensor | None:
        if self.folder is None:
            return None
        try:
            return torch.from_numpy(np.load(self.folder / f"{key}.npy", allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None  # not there, or damaged: it is computed (again)

    def _write(self, key: str) -> None:
        if self.folder is not None:
            array = self._kept[key].numpy()
            write_atomic(self.folder / f"{key}.npy", lambda place: np.save(place, array, allow_pickle=False))


class PromptProjection(nn.Sequential):
    """Hidden state of a [SEG] token to a prompt vector: Linear, ReLU, Linear (Sa2VA, UniBiomed). [N, D] -> [N, C]."""

    def __init__(self, hidden_dim: int, prompt_dim: int):
        super().__init__(nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, prompt_dim))
