"""From pictures and prompts to `Prediction`: what users call on a model."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from unimed.io.images import load as load_image
from unimed.io.result import Prediction
from unimed.models.boltzformer.tokenizing import SEPARATOR, check_prompts
from unimed.structures import Region, as_list


class PicturePredictor:
    """Mixin of models with `encode_images` and `segment_slices`: prediction for one picture and for many."""

    def predict(self, image, text: str | Sequence[str], **options) -> Prediction | list[Prediction]:
        """Show what a text names in a picture.

        Args:
            image: path, PIL image or array HxW or HxWx3.
            text: one prompt, several joined by "[SEP]" (one prediction with a region for each), or a list of these
                (a list of predictions; the picture is encoded once).
            options: see `predict_batch`.
        """
        if isinstance(text, str):
            return self.predict_batch([image], [text], **options)[0]
        groups = [_split(entry) for entry in text]
        together = self._predict([image], [[p for group in groups for p in group]], **options)[0]
        regions = iter(together.regions)
        return [_prediction([next(regions) for _ in group], together) for group in groups]

    def predict_batch(
        self,
        images: Sequence,
        texts: Sequence[str],
        *,
        batch_size: int = 4,
        presence_threshold: float = 0.5,
        seed: int = 0,
        site: str = "",
        as_channels: bool = False,
    ) -> list[Prediction]:
        """The same answers as one by one.

        Args:
            images, texts: of equal length, as in `predict`.
            batch_size: pictures encoded at a time.
            presence_threshold: below it a thing counts as absent and its mask is empty; v1 has no such score.
            seed: of the attention sampling.
            site: CT window for pictures of more than 8 bits.
            as_channels: the three channels of an array are a slice and its neighbours. Otherwise a model of slices sees
                colours as their brightness.

        Raises:
            ValueError: lengths differ, or an empty prompt.
            ImageError, ReadError: an image that cannot be used.
        """
        images, texts = as_list(images), list(texts)
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images for {len(texts)} texts")
        prompts = [_split(text) for text in texts]
        options = dict(batch_size=batch_size, presence_threshold=presence_threshold, seed=seed, site=site)
        return self._predict(images, prompts, as_channels=as_channels, **options)

    @torch.no_grad()
    def _predict(
        self, images, prompts, *, batch_size=4, presence_threshold=0.5, seed=0, site="", as_channels=False
    ) -> list[Prediction]:
        processor, predictions = self.processor, []
        show = _brightness if self.config.channels == "slices" and not as_channels else np.asarray
        for start in range(0, len(images), batch_size):
            begun = time.perf_counter()
            inputs = [
                load_image(image, site=site, windows=self.config.ct_windows)
                for image in images[start : start + batch_size]
            ]
            features = self.encode_images(torch.stack([processor.image(show(item.rgb)) for item in inputs]))
            encoded = time.perf_counter() - begun
            for number, (item, asked) in enumerate(zip(inputs, prompts[start : start + batch_size], strict=True)):
                begun = time.perf_counter()
                output = self.segment_slices(features.select([number]), asked, seed=seed)
                maps = processor.restore(output.mask_logits[0], item.rgb.shape[:2]).cpu()
                regions = [
                    _region(phrase, probability.numpy(), float(existence), presence_threshold)
                    for phrase, probability, existence in zip(asked, maps, output.existence[0], strict=True)
                ]
                seconds = {"image": encoded / len(inputs), "masks": time.perf_counter() - begun}
                name = str(self.config._name_or_path or type(self).__name__)
                predictions.append(
                    Prediction(_sentence(regions), tuple(regions), item.geometry, seconds, name, image=item.source)
                )
        return predictions


def _brightness(rgb: np.ndarray) -> np.ndarray:
    """HxWx3 -> HxW, the weights of ITU-R BT.601; grey pictures stay as they are."""
    return np.rint(rgb @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


def _split(text: str) -> list[str]:
    if not isinstance(text, str):
        raise ValueError(f"a prompt is a text, got {text!r}")
    return check_prompts([part.strip() for part in text.split(SEPARATOR)])


def _region(phrase, probability, existence: float, threshold: float) -> Region:
    known = existence == existence  # NaN: this model has no such score
    mask = (probability > 0.5) & (not known or existence > threshold)
    confidence = float(probability[mask].mean()) if mask.any() else None
    return Region(phrase, mask=mask, presence=existence if known else None, confidence=confidence)


def _sentence(regions: Sequence[Region]) -> str:
    found = [region.phrase for region in regions if region.mask.any()]
    missing = [region.phrase for region in regions if not region.mask.any()]
    parts = [f"Found: {', '.join(found)}."] * bool(found) + [f"Not found: {', '.join(missing)}."] * bool(missing)
    return " ".join(parts)


def _prediction(regions, whole: Prediction) -> Prediction:
    return Prediction(_sentence(regions), tuple(regions), whole.geometry, whole.timing_s, whole.model_reference,
                      image=whole.image)  # fmt: skip
