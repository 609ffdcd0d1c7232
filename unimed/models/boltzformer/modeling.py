"""BiomedParse v2 as a transformers model: images and prompts in, mask, edge and existence logits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from unimed.models.boltzformer.configuration import CHANNELS, BoltzFormerConfig
from unimed.models.boltzformer.decoder import BoltzFormerDecoder
from unimed.models.boltzformer.encoding import ImageEncoder, ImageFeatures
from unimed.models.boltzformer.features import FocalPyramid, PixelDecoder, TextTower
from unimed.models.boltzformer.layers import Layout
from unimed.models.boltzformer.predicting import ImagePredictor
from unimed.models.boltzformer.prompting import PromptEncoder, PromptFeatures
from unimed.models.boltzformer.sampling import CountedDraws, item_key
from unimed.models.boltzformer.upsampling import OutputUpsampler
from unimed.models.weights import WholeWeights

#: Mean and standard deviation of ImageNet in 0..255, red, green, blue. For grey slices their averages are taken.
RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass
class BoltzFormerOutput(ModelOutput):
    """N items, image-major: masks and edges are logits [N, 1, H/4, W/4], existence a logit [N, 1]."""

    masks: torch.Tensor | None = None
    existence: torch.Tensor | None = None
    edges: torch.Tensor | None = None
    prompt_vectors: torch.Tensor | None = None


@dataclass
class SliceOutput:
    """S slices, P prompts: mask and edge logits [S, P, H/4, W/4] float32, existence [S, P] probability."""

    mask_logits: torch.Tensor
    existence: torch.Tensor
    edge_logits: torch.Tensor | None = None


class BoltzFormerModel(ImagePredictor, PromptEncoder, ImageEncoder, WholeWeights, PreTrainedModel):
    """Text-prompted segmentation of 2D images or slices (BiomedParse v2).

    Pixel values are 0..255, three channels; mean and standard deviation are buffers of the checkpoint. A model for
    volumes reads a slice and its two neighbours as the three channels (`config.channels == "slices"`).
    """

    config_class = BoltzFormerConfig
    base_model_prefix = "boltzformer"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: BoltzFormerConfig):
        super().__init__(config)
        self.register_buffer("pixel_mean", torch.empty(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.empty(1, 3, 1, 1))
        self.set_channels(config.channels)
        self.backbone = FocalPyramid(config)
        self.pixel_decoder = PixelDecoder(config)
        self.text = TextTower(config)
        self.decoder = BoltzFormerDecoder(config)
        shown = config.num_queries - config.edge_queries
        self.upsampler = OutputUpsampler(shown) if config.learned_upsampling else None
        self.post_init()

    def _init_weights(self, module):
        # Every part has set up its own weights when it was built.
        pass

    @torch.no_grad()
    def set_channels(self, channels: str) -> None:
        """Say what the three channels hold, "slices" or "rgb", and set mean and deviation accordingly."""
        if channels not in CHANNELS:
            raise ValueError(f"channels {channels!r} is unknown; use one of {CHANNELS}")
        self.config.channels = channels
        gray = channels == "slices"
        for buffer, values in ((self.pixel_mean, RGB_MEAN), (self.pixel_std, RGB_STD)):
            shown = [sum(values) / 3] * 3 if gray else values
            buffer.copy_(torch.tensor(shown).view(1, 3, 1, 1))

    def forward(
        self,
        pixel_values=None,
        input_ids=None,
        attention_mask=None,
        num_prompts: Sequence[int] | None = None,
        image_features: ImageFeatures | None = None,
        prompt_features: PromptFeatures | None = None,
        seed: int | None = None,
        places: Sequence[int] | None = None,
        draws=None,
        record: dict | None = None,
    ) -> BoltzFormerOutput:
        """Segment.

        Args:
            pixel_values: [B, 3, H, W] in 0..255; or `image_features` of `encode_images`.
            input_ids, attention_mask: [N, L], prompts of image 0, then of image 1, ...
            num_prompts: [B], prompts per image; None: the same number for all.
            prompt_features: instead of ids, prompts that every image is asked for.
            seed: makes sampling depend on seed, `places` (number of each image, default 0..B-1) and prompt alone.
            draws: recorded uniform numbers instead, see `sampling.Draws`. Neither: the global generator.
            record: dictionary to be filled with intermediate values.

        Raises:
            ValueError: no prompt, or `num_prompts` that does not add up.
        """
        features = image_features or self.encode_images(pixel_values, record)
        images = len(features.mask_features)
        if prompt_features is not None:
            counts = [len(prompt_features)] * images
            items = prompt_features.repeat(images)
        else:
            if input_ids is None or len(input_ids) == 0:
                raise ValueError("no prompt: give input_ids and attention_mask, or prompt_features")
            items = self.encode_ids(input_ids, attention_mask)
            counts = [len(items) // images] * images if num_prompts is None else [int(n) for n in num_prompts]
            if len(counts) != images or sum(counts) != len(items) or min(counts) < 1:
                raise ValueError(f"num_prompts {counts} does not share out {len(items)} prompts to {images} images")
        layout = Layout(counts, features.mask_features.device)
        if draws is None and seed is not None:
            places = range(images) if places is None else [int(place) for place in places]
            if len(places) != images:
                raise ValueError(f"{len(places)} places for {images} images")
            owners = (places[image] for image, count in enumerate(counts) for _ in range(count))
            keys = [item_key(seed, place, ids) for place, ids in zip(owners, items.ids, strict=True)]
            draws = CountedDraws(keys, features.mask_features.device)
        logits, existence = self.decoder(
            features.levels, features.mask_features, items.tokens, items.valid, layout, draws, record
        )
        split = logits.shape[1] - self.config.edge_queries
        edges = logits[:, split:].mean(1, keepdim=True) if self.config.edge_queries else None
        masks = logits[:, :split].mean(1, keepdim=True)
        if self.upsampler is not None:
            masks = self.upsampler(logits[:, :split], features.pixels[layout.image_of_item])
        return BoltzFormerOutput(masks=masks, existence=existence, edges=edges, prompt_vectors=items.end)

    @torch.no_grad()
    def segment_slices(
        self,
        images: torch.Tensor | ImageFeatures,
        prompts: Sequence[str] | PromptFeatures,
        *,
        seed: int | None = 0,
        slice_numbers: Sequence[int] | None = None,
        draws=None,
    ) -> SliceOutput:
        """The same prompts on every slice or image.

        Args:
            images: [S, 3, H, W] in 0..255 at the model's size, or features of `encode_images`.
            prompts: texts, or features of `encode_prompts`.
            seed: the same seed gives the same masks, however slices and prompts are grouped; None: the global
                generator.
            slice_numbers: [S], place of each slice in its volume, which its draws depend on; default 0..S-1.
        """
        if not isinstance(images, ImageFeatures):
            if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < 32:
                raise ValueError(f"images must be [S, 3, H, W] with sides of at least 32 px, got {tuple(images.shape)}")
            images = self.encode_images(images)
        if not isinstance(prompts, PromptFeatures):
            prompts = self.encode_prompts(prompts)
        output = self(image_features=images, prompt_features=prompts, seed=seed, places=slice_numbers, draws=draws)

        def per_slice(values):
            return values[:, 0].float().unflatten(0, (-1, len(prompts)))

        edges = None if output.edges is None else per_slice(output.edges)
        return SliceOutput(per_slice(output.masks), per_slice(output.existence).sigmoid(), edges)
