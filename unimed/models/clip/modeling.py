"""Two towers in one space: images and texts as vectors, zero-shot classification, retrieval."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from unimed.geometry import Geometry
from unimed.io.result import ClassProbabilities, Prediction
from unimed.io.volumes import Volume, cut_slices
from unimed.models.clip.building import build_towers
from unimed.models.clip.configuration import ClipConfig
from unimed.models.clip.processing import ClipProcessor
from unimed.models.predictor import Predictor, refuse_regions
from unimed.models.weights import WholeWeights
from unimed.registry import keywords
from unimed.structures import as_list

logger = logging.getLogger("unimed.models.clip")
#: Image tokens that a CPU reads together, by what was fastest for widths of 256 and 768.
TOKENS_AT_ONCE = 1024
#: Prompts of `zero_shot` where the caller gives none. Wording matters: give prompts for your labels if you can.
TEMPLATES = ("{}", "a medical image of {}", "an image that shows {}")


class ClipModel(Predictor, WholeWeights, PreTrainedModel):
    """A contrastive model: UniMed-CLIP, BiomedCLIP, SigLIP or any other open_clip model.

    `towers` is open_clip's module; its names (`visual.`, `text.`, `logit_scale`) are kept.
    """

    config_class = ClipConfig
    base_model_prefix = "clip"
    main_input_name = "images"
    supports_gradient_checkpointing = True
    prediction_batch = 64

    def __init__(self, config: ClipConfig):
        super().__init__(config)
        self.towers = build_towers(config)
        self._processor: ClipProcessor | None = None
        self.post_init()

    def _init_weights(self, module):
        # open_clip has set up its own parts; only buffers without a place in the file are lost on the way.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
        mask = module._buffers.get("attn_mask")
        if mask is not None and mask.ndim == 2:
            causal = torch.full(mask.shape, float("-inf"), device=mask.device, dtype=mask.dtype).triu_(1)
            module.attn_mask = causal

    def activation_checkpointing_enable(self) -> None:
        """Keep no activations inside the towers; they are computed again in the backward pass."""
        self.towers.set_grad_checkpointing(True)

    @property
    def processor(self) -> ClipProcessor:
        """The processor saved beside the weights; a model built in memory gets one of its configuration."""
        if self._processor is None:
            name = self.config._name_or_path
            self._processor = ClipProcessor.from_pretrained(name) if name else ClipProcessor(self.config)
        return self._processor

    @processor.setter
    def processor(self, processor: ClipProcessor):
        self._processor = processor

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers does; the tokenizer is saved beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self.processor.save_pretrained(save_directory)

    @property
    def sigmoid(self) -> bool:
        """Whether the model was made for the sigmoid loss (SigLIP): every pair has a probability of its own."""
        return getattr(self.towers, "logit_bias", None) is not None

    # -- forward ----------------------------------------------------------------------------------------------------
    def forward(
        self, images: torch.Tensor | None = None, input_ids: torch.Tensor | None = None, pixel_values=None
    ) -> dict[str, torch.Tensor]:
        """Normalised features of both towers.

        Args:
            images: [N, 3, S, S], uint8 or normalised floats; `pixel_values` is the name the processor gives them.
            input_ids: [M, L].

        Returns:
            `image_features` [N, D], `text_features` [M, D], `logit_scale` (not its logarithm), `logit_bias` or None.
        """
        return {
            "image_features": self.image_features(pixel_values if images is None else images),
            "text_features": self.text_features(input_ids),
            "logit_scale": self.towers.logit_scale.exp(),
            "logit_bias": getattr(self.towers, "logit_bias", None),
        }

    def image_features(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """[N, 3, S, S] (uint8 or normalised floats) -> [N, D]; differentiable."""
        images = self.processor.normalize(images)
        if not torch.is_autocast_enabled(images.device.type):
            images = images.to(self.dtype)
        features = self.towers.encode_image(images)
        return F.normalize(features.float(), dim=-1) if normalize else features

    def text_features(self, input_ids: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """[M, L] -> [M, D]; differentiable."""
        features = self.towers.encode_text(input_ids)
        return F.normalize(features.float(), dim=-1) if normalize else features

    # -- the public face --------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_image(self, images, normalize: bool = True, batch_size: int = 64, site: str = "") -> torch.Tensor:
        """Features [N, D] float32 on the CPU of one image or a list of them.

        Args:
            images: path, PIL image, array, list of these, or a tensor [N, 3, S, S] (uint8 or normalised floats).
            normalize: to unit length. Comparing needs it.
            site: CT window, see `unimed.io.windows.CT_WINDOWS_HU`.

        Raises:
            ImageError, ReadError: no image the model can read.
        """
        if not torch.is_tensor(images) or images.ndim != 4:
            images = as_list(images) if _several(images) else [images]
        parts, at_once = [], min(batch_size, self._images_at_once())
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            part = part if torch.is_tensor(part) else self.processor.images(part, site)
            for few in part.to(self.device).split(at_once):
                parts.append(self.image_features(few, normalize).float().cpu())
        return torch.cat(parts)

    def _images_at_once(self) -> int:
        """How many images the tower reads together: on a CPU as many as its caches hold the inner values of."""
        if self.device.type != "cpu":
            return 1 << 30
        patch = self.config.model_cfg["vision_cfg"].get("patch_size") or 16
        return max(1, TOKENS_AT_ONCE // (self.config.image_size // patch) ** 2)

    @torch.no_grad()
    def encode_text(
        self, texts: str | Sequence[str], normalize: bool = True, batch_size: int = 256, padding: str = "longest"
    ) -> torch.Tensor:
        """Features [N, D] float32 on the CPU. A text longer than the context is cut, and named in a warning.

        Raises:
            ValueError: see `ClipProcessor.texts`.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        # Texts of like length go together, so that a batch is padded little.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]) if isinstance(texts[i], str) else 0)
        parts, places = [], []
        for start in range(0, max(1, len(texts)), batch_size):
            numbers = order[start : start + batch_size]
            ids, cut = self.processor.texts([texts[i] for i in numbers], padding)
            for number in cut:
                text = texts[numbers[number]]
                logger.warning("text cut to %d tokens: %.60s...", self.config.context_length, text)
            parts.append(self.text_features(ids.to(self.device), normalize).float().cpu())
            places += numbers
        features = torch.cat(parts)
        return features[torch.tensor(places).argsort()]

    def classifier(
        self,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] | None = None,
        class_norm: bool = False,
    ) -> tuple[tuple[str, ...], torch.Tensor]:
        """Names and weights [C, D] of a zero-shot classifier: the mean of the unit vectors of a class's prompts.

        Args:
            labels: names, put into every template; or {name: prompts}, taken as they are.
            templates: texts with one `{}`.
            class_norm: z-score every dimension over the classes before the last normalisation. The features of the
                images have to be brought there too: see `class_statistics` and `class_normalise`.

        Raises:
            ValueError: no label, a label twice, a class without prompts, or a template without `{}`.
        """
        names, weights = self._class_features(labels, templates)
        if class_norm:
            return names, class_normalize(weights, *_statistics(weights))
        return names, F.normalize(weights, dim=-1)

    def class_statistics(
        self, labels: Sequence[str] | Mapping[str, Sequence[str]], templates: Sequence[str] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [1, D] over the classes of their text features; arguments as `classifier`."""
        return _statistics(self._class_features(labels, templates)[1])

    def _class_features(self, labels, templates) -> tuple[tuple[str, ...], torch.Tensor]:
        """Names and the mean of the unit vectors of each class's prompts, [C, D]."""
        prompts = _prompts(labels, templates)
        texts = list(dict.fromkeys(text for group in prompts.values() for text in group))
        place = {text: number for number, text in enumerate(texts)}
        features = self.encode_text(texts)
        return tuple(prompts), torch.stack(
            [features[[place[text] for text in group]].mean(0) for group in prompts.values()]
        )

    def zero_shot(
        self,
        image,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] | None = None,
        site: str = "",
        compat: str | None = None,
        class_norm: bool = False,
        batch_size: int = 64,
    ) -> ClassProbabilities | list[ClassProbabilities]:
        """Which of the labels fits an image.

        Args:
            image: see `encode_image`; a list gives a list of results.
            labels, templates: see `classifier`.
            compat: "reference" compares image features that were not normalised, at scale 1, as the published
                demonstration of UniMed-CLIP did; the order of the labels is the same.
            class_norm: compare after every dimension was z-scored over the classes, on both sides.
            batch_size: images encoded at a time.

        Raises:
            ValueError: fewer than two labels where probabilities are shared among them (one label would always get 1),
                and what `classifier` raises.
        """
        names, weights = self.classifier(labels, templates, class_norm)
        if len(names) < 2 and not self.sigmoid:
            raise ValueError(
                f"only one label ({names[0]!r}) was given: its probability would be 1 whatever the image shows; "
                "give at least two, such as 'no ...', or compare encode_image with encode_text yourself"
            )
        several = image.ndim == 4 if torch.is_tensor(image) else _several(image)
        image = as_list(image) if several and not torch.is_tensor(image) else image
        raw = compat == "reference" or class_norm
        features = self.encode_image(image, normalize=not raw, batch_size=batch_size, site=site)
        if class_norm:
            features = class_normalize(features, *self.class_statistics(labels, templates))
        scale = 1.0 if compat == "reference" else float(self.towers.logit_scale.detach().float().exp())
        logits = scale * features @ weights.T
        if self.sigmoid:
            probabilities = torch.sigmoid(logits + float(self.towers.logit_bias.detach()))
        else:
            probabilities = logits.softmax(-1)
        similarities = F.normalize(features, dim=-1) @ weights.T
        kind = "sigmoid" if self.sigmoid else "softmax"
        results = [
            ClassProbabilities(names, tuple(p.tolist()), tuple(s.tolist()), kind)
            for p, s in zip(probabilities, similarities, strict=True)
        ]
        return results if several else results[0]

    def retrieve(self, query, gallery, k: int = 5, site: str = "") -> list[list[tuple[int, float]]]:
        """The nearest of a gallery to each query, as (place in the gallery, cosine), best first.

        Args:
            query, gallery: each texts (strings), images, or features [N, D] of unit length; a string is a text unless
                it is the path of a file.

        Raises:
            ValueError: an empty gallery or k < 1.
        """
        queries, things = self._embed(query, site), self._embed(gallery, site)
        if len(things) == 0 or k < 1:
            raise ValueError(f"retrieve needs a gallery and k >= 1, got {len(things)} entries and k={k}")
        values, places = (queries @ things.T).topk(min(k, len(things)), dim=1)
        return [list(zip(p.tolist(), v.tolist(), strict=True)) for p, v in zip(places, values, strict=True)]

    def predict(self, image, text, regions=None, **options) -> Prediction | list[Prediction]:
        """Which of the labels fits an image or volume; a list of images gives a list.

        Args:
            text: the labels, in contrast to other families: a list or {name: prompts} as of `classifier`, or a text
                with commas between them.
            options: as of `Predictor.predict`, and `templates`, `compat`, `class_norm` of `zero_shot`.
        """
        several = _several(image) and not (isinstance(image, tuple) and isinstance(image[-1], Geometry))
        images = as_list(image) if several else [image]
        given = None if regions is None else [regions] * len(images)
        found = self.predict_batch(images, [text] * len(images), given, **options)
        return found if several else found[0]

    @classmethod
    def image_options(cls) -> set[str]:
        """Those of `zero_shot`."""
        return keywords(cls._predict_images, cls.zero_shot)

    @classmethod
    def volume_options(cls) -> set[str]:
        """Those of `zero_shot`, for the slices."""
        return keywords(cls._predict_volume, cls.zero_shot)

    def _predict_images(self, images, texts, regions, *, batch_size: int = 64, **options) -> list[Prediction]:
        refuse_regions(regions, "models that compare images with labels")
        if any(image is None or isinstance(image, list) for image in images):
            raise ValueError("labels are compared with one image; give each image on its own")
        predictions: list = [None] * len(texts)
        for labels, places in _by_labels(texts):
            begin = time.perf_counter()
            found = self.zero_shot([images[place] for place in places], labels, batch_size=batch_size, **options)
            seconds = {"compare": (time.perf_counter() - begin) / len(places)}
            for place, one in zip(places, found, strict=True):
                image = images[place]
                done = Prediction(one.label, (), image.geometry, seconds, self.config._name_or_path, classes=one)
                predictions[place] = replace(done, image=image.source)
        return predictions

    def _predict_volume(
        self, volume: Volume, texts, regions, *, plane=None, site="", modality="", window=None, percentiles=None,
        batch_size: int = 64, **options,
    ) -> list[Prediction]:  # fmt: skip
        """How well labels fit each slice of a volume (`classes.per_slice`), and the means over its slices."""
        refuse_regions(regions, "models that compare images with labels")
        slices, _, source = cut_slices(
            volume, plane, site=site, modality=modality, window=window, percentiles=percentiles
        )
        predictions: list = [None] * len(texts)
        for labels, places in _by_labels(texts):
            begin, found = time.perf_counter(), []
            for start in range(0, len(slices), batch_size):
                part = [slices[z] for z in range(start, min(start + batch_size, len(slices)))]
                found += self.zero_shot(part, labels, batch_size=batch_size, **options)
            each = np.array([one.probabilities for one in found], dtype=np.float32)
            likeness = np.mean([one.similarities for one in found], axis=0)
            classes = ClassProbabilities(
                found[0].labels, tuple(each.mean(0, dtype=np.float64).tolist()), tuple(likeness.tolist()),
                found[0].kind, each,
            )  # fmt: skip
            done = Prediction(
                classes.label, (), volume.geometry, {"compare": time.perf_counter() - begin},
                self.config._name_or_path, image=source, classes=classes,
            )  # fmt: skip
            for place in places:
                predictions[place] = done
        return predictions

    def _embed(self, things, site: str) -> torch.Tensor:
        if torch.is_tensor(things) and things.ndim == 2:
            return things
        if isinstance(things, np.ndarray) and things.ndim == 2 and things.dtype.kind == "f":
            return torch.from_numpy(things).float()
        several = isinstance(things, (list, tuple))
        first = (things[0] if things else None) if several else things
        if several and not things:
            return torch.empty(0, self.config.model_cfg["embed_dim"])
        if isinstance(first, str) and not _is_file(first):
            return self.encode_text(things)
        return self.encode_image(things, site=site)


def _several(images) -> bool:
    """Whether these are many images: a list, an array [N, H, W, 3], a dataset or a generator, and no single one."""
    if isinstance(images, np.ndarray) or torch.is_tensor(images):
        return images.ndim == 4
    return isinstance(images, list | tuple | Iterator) or (
        hasattr(images, "__len__")
        and hasattr(images, "__getitem__")
        and not isinstance(images, str | PurePath | bytes | Mapping)
    )


def class_normalize(features: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Unit vectors of features [N, D] that were shifted and scaled by the statistics of the classes.

    Image features must be raw (not of unit length): the shift has the scale of the towers' output.
    """
    return F.normalize((features - mean) / std, dim=-1)


def _statistics(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return weights.mean(0, keepdim=True), weights.std(0, keepdim=True).clamp_min(1e-12)


def _by_labels(texts: Sequence) -> list[tuple[Sequence[str] | Mapping, list[int]]]:
    """(labels, places of the questions that give them): a classifier is made once for each."""
    groups: dict[str, tuple[Sequence[str] | Mapping, list[int]]] = {}
    for place, text in enumerate(texts):
        labels = [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text
        groups.setdefault(repr(labels), (labels, []))[1].append(place)
    return list(groups.values())


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # longer than a path may be
        return False


def _prompts(labels, templates) -> dict[str, list[str]]:
    if isinstance(labels, str):
        labels = [labels]
    if isinstance(labels, Mapping):
        prompts = {str(name): list(texts) for name, texts in labels.items()}
    else:
        templates = TEMPLATES if templates is None else list(templates)
        wrong = [text for text in templates if text.count("{}") != 1]
        if wrong or not templates:
            raise ValueError(f"a template needs {{}} once, where the label goes; got {wrong or templates}")
        names = [label if isinstance(label, str) else str(label[0]) for label in labels]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the label {twice[0]!r} is given twice")
        words = [[label] if isinstance(label, str) else list(label) for label in labels]
        prompts = {
            name: [template.replace("{}", word) for template in templates for word in synonyms]
            for name, synonyms in zip(names, words, strict=True)
        }
    empty = [name for name, texts in prompts.items() if not texts or not all(text.strip() for text in texts)]
    if not prompts or empty:
        raise ValueError(f"every label needs a prompt that is not empty; without one: {empty or 'no label was given'}")
    return prompts
