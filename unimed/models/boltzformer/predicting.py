"""From pictures, volumes and prompts to `Prediction`: what users call on a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from unimed.io.result import Prediction
from unimed.models.boltzformer.recognition import as_prediction, encode, known_type, segment_encoded
from unimed.models.boltzformer.tokenizing import SEPARATOR, check_prompts
from unimed.models.predictor import Predictor, refuse_regions
from unimed.registry import keywords


class ImagePredictor(Predictor):
    """Mixin of models with `encode_images` and `segment_slices`.

    A text of `predict` is a prompt or several joined by "[SEP]"; its prediction has a region for each.
    """

    prediction_batch = 4
    given_modality = True

    @torch.no_grad()
    def _predict_images(
        self,
        images: Sequence,
        texts: Sequence[str],
        regions: Sequence,
        *,
        batch_size: int = 4,
        presence_threshold: float = 0.5,
        seed: int = 0,
        as_channels: bool = False,
        p_value: float | None = None,
        overlap: str = "keep",
        modality: str = "",
        site: str = "",
    ) -> list[Prediction]:
        """A region per prompt, see `Predictor.predict_batch`.

        Args:
            batch_size: pictures encoded at a time.
            presence_threshold: below it a thing counts as absent and its mask is empty; v1 has no such score.
            seed: of the attention sampling.
            as_channels: the three channels of an array are a slice and its neighbours. Otherwise a model of slices sees
                colours as their brightness.
            p_value, overlap: see `segment_image`; the K-S test of v1 needs `modality` and `site`.

        Raises:
            ValueError: an empty prompt, no image, or regions, which these models do not read.
        """
        refuse_regions(regions, "models that segment by prompts alone")
        prompts = [split_prompts(text) for text in texts]
        if any(image is None or isinstance(image, list) for image in images):
            raise ValueError("a prompt needs one image; give each image on its own")
        options = dict(threshold=presence_threshold, seed=seed, p_value=p_value, overlap=overlap)
        options["kind"] = known_type(modality, site)
        predictions: list = [None] * len(texts)
        distinct = list({id(image): image for image in images}.values())
        for start in range(0, len(distinct), batch_size):
            begun, part = time.perf_counter(), distinct[start : start + batch_size]
            features = encode(self, [image.rgb for image in part], as_channels)
            encoded = (time.perf_counter() - begun) / len(part)
            for number, image in enumerate(part):
                mine = features.select([number])
                for place in (place for place, one in enumerate(images) if one is image):
                    begun = time.perf_counter()
                    found = segment_encoded(self, mine, image.rgb, prompts[place], **options)
                    done = as_prediction(found, image.geometry, model=self._reference(), image=image.source)
                    seconds = {"image": encoded, "masks": time.perf_counter() - begun}
                    predictions[place] = replace(done, timing_s=seconds)
        return predictions

    def _predict_volume(
        self, volume, texts: Sequence[str], regions: Sequence, *, plane=None, presence_threshold: float = 0.5, **options
    ) -> list[Prediction]:
        """A label map per text, see `unimed.models.boltzformer.volumes.segment_groups` for the options."""
        from unimed.models.boltzformer.volumes import segment_groups

        refuse_regions(regions, "models that segment by prompts alone")
        groups = [dict(enumerate(split_prompts(text), start=1)) for text in texts]
        return segment_groups(self, volume, groups, view=plane, threshold=presence_threshold, **options)

    @classmethod
    def volume_options(cls) -> set[str]:
        """Those of `segment_groups`, where `plane` and `presence_threshold` are called `view` and `threshold`."""
        from unimed.models.boltzformer.volumes import segment_groups

        return keywords(cls._predict_volume, segment_groups) - {"view", "threshold"}

    def _reference(self) -> str:
        return str(self.config._name_or_path or type(self).__name__)


def split_prompts(text: str) -> list[str]:
    """The prompts of a text, parted by "[SEP]".

    Raises:
        ValueError: not a text, or an empty prompt.
    """
    if not isinstance(text, str):
        raise ValueError(f"a prompt is a text, got {text!r}")
    return check_prompts([part.strip() for part in text.split(SEPARATOR)])
