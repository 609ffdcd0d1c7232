"""Contrastive training of images and texts, and its scores: zero-shot accuracy and retrieval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from unimed.evaluation.scorers.pairs import score_pairs
from unimed.io.result import Prediction
from unimed.losses.contrastive import MAX_LOG_SCALE, clip_loss, siglip_loss
from unimed.models.building import build_model
from unimed.models.clip import ClipModel
from unimed.registry import TASKS
from unimed.structures import Sample
from unimed.tasks.base import Task

LOSSES = ("clip", "siglip")
MAX_NAMED = 20  # captions that were cut and are named in the log; of millions every tenth may be
logger = logging.getLogger("unimed.tasks")


@TASKS.register_module()
class ContrastiveTask(Task):
    """A `ClipModel` with its loss.

    Args:
        model: folder of a converted or exported model; dict(type="Clip", variant=...) for fresh towers of a published
            size, dict(type="OpenClip", name=...) for those of an open_clip build, or dict(type="SmallClip", ...).
        loss: "clip" (symmetric InfoNCE) or "siglip" (sigmoid; needs a model with a bias).
        chunk_size: towers run over so many pairs at a time. Only the features of the whole batch are kept, and
            activations of one chunk; everything else is computed again in the backward pass. So `batch_size` is not
            bound by memory, and loss and gradients are those of the whole batch. None: all at once.
        multi_positive: pairs with the same caption fit each other (label-made captions repeat in large batches).
            Published: False.
        lock_image, lock_text: None trains the tower, a number freezes all but so many of its last groups (layers).
        vision_init: a CLIP checkpoint whose vision weights the image tower starts from (MetaCLIP's).
        text_init: folder of a Hugging Face text encoder (BiomedBERT) the text tower starts from.
        tokenizer: folder or name of a tokenizer, for fresh towers.
        labels: class names of the validation and test samples' `label`; None takes those that occur.
        templates: texts with `{}` for these labels.
        compat: "reference" takes over MetaCLIP's scale and its way to resize position embeddings.

    Raises:
        ValueError: unknown loss, or a sigmoid loss for a model without a bias.
    """

    undecayed_words = ("bn", "ln", "bias", "logit_scale")
    card_tags = ("medical", "zero-shot-image-classification", "image-text-retrieval")
    card_example = 'model.zero_shot("image.png", ["CT", "MRI"]).probabilities'
    headline_metrics = ("image_to_text_R@1", "text_to_image_R@1", "accuracy", "balanced_accuracy")

    def __init__(
        self,
        model: str | dict,
        loss: str = "clip",
        chunk_size: int | None = None,
        multi_positive: bool = False,
        lock_image: int | None = None,
        lock_text: int | None = None,
        vision_init: str | None = None,
        text_init: str | None = None,
        tokenizer: str | None = None,
        labels: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        compat: str | None = None,
    ):
        if loss not in LOSSES:
            raise ValueError(f"loss {loss!r} is not known; choose one of: {', '.join(LOSSES)}")
        super().__init__(
            build_model(model, ClipModel, [("", "SmallClip")], tokenizer=tokenizer, sigmoid=loss == "siglip")
        )
        if loss == "siglip" and not self.model.sigmoid:
            raise ValueError("loss='siglip' needs a model with a bias: model_cfg['init_logit_bias'], or sigmoid=True")
        self.loss, self.chunk_size, self.multi_positive = loss, chunk_size, multi_positive
        self.labels, self.templates, self.compat = labels, templates, compat
        self._cut_named: set[str] = set()
        towers = self.model.towers
        if vision_init:
            _start_vision(towers, vision_init, compat)
        if text_init:
            _start_text(towers, text_init)
        if lock_image is not None:
            towers.lock_image_tower(unlocked_groups=lock_image)
        if lock_text is not None:
            towers.lock_text_tower(unlocked_layers=lock_text)

    def gradient_checkpointing_enable(self) -> None:
        self.model.activation_checkpointing_enable()

    def after_step(self) -> None:
        """The scale stays at most 100 (and at least 1), as in CLIP."""
        with torch.no_grad():
            self.model.towers.logit_scale.clamp_(0, MAX_LOG_SCALE)

    def forward(self, batch: dict, **_) -> dict[str, torch.Tensor]:
        """`{"loss", "scale"}` of a batch of `ImageTextCollator`; the pairs of all ranks are compared.

        Without gradients (validation) those of this rank alone, as ranks may then hold batches of different number.
        """
        for name in set(batch.get("cut", ())) - self._cut_named:
            if len(self._cut_named) < MAX_NAMED:
                self._cut_named.add(name)
                logger.warning("caption of %s is longer than the context and was cut", name)
                if len(self._cut_named) == MAX_NAMED:
                    logger.warning("further ones are no longer named; `cut` in the log counts them")
        towers = self.model.towers
        image = self._chunked(self.model.image_features, batch["images"])
        text = self._chunked(self.model.text_features, batch["input_ids"])
        groups = batch["groups"] if self.multi_positive else None
        scale, together = towers.logit_scale.exp(), torch.is_grad_enabled()
        with torch.autocast(image.device.type, enabled=False):
            if self.loss == "siglip":
                loss = siglip_loss(image.float(), text.float(), scale, towers.logit_bias, groups, together)
            else:
                loss = clip_loss(image.float(), text.float(), scale, groups, together)
        return {"loss": loss, "scale": scale.detach(), "cut": torch.tensor(float(len(batch.get("cut", ()))))}

    def _chunked(self, encode, inputs: torch.Tensor) -> torch.Tensor:
        size = self.chunk_size
        if not size or len(inputs) <= size or not torch.is_grad_enabled():
            return encode(inputs)
        parts = [checkpoint(encode, part, use_reentrant=False) for part in inputs.split(size)]
        return torch.cat(parts)

    # -- scores -----------------------------------------------------------------------------------------------------
    def predict_samples(self, samples: Sequence[Sample]) -> list[Prediction]:
        """`features` of each image [D] and its captions [K, D], and which of `labels` fits best."""
        images = self.model.encode_image([sample.images[0] for sample in samples]).numpy()
        captions = [tuple(sample.labels.get("captions") or ()) for sample in samples]
        every = [caption for group in captions for caption in group]
        texts = self.model.encode_text(every).numpy() if every else np.zeros((0, images.shape[1]), np.float32)
        best = [""] * len(samples)
        if self.labels:
            names, weights = self.model.classifier(self.labels, self.templates)
            best = [names[number] for number in (images @ weights.numpy().T).argmax(1)]
        predictions, place = [], 0
        for image, group, label in zip(images, captions, best, strict=True):
            own = texts[place : place + len(group)]
            predictions.append(Prediction(label, features={"image": image, "texts": own, "captions": group}))
            place += len(group)
        return predictions

    def validate(self, samples: Sequence[Sample], predictions=None) -> dict[str, float]:
        """The summary of `score`, without intervals."""
        predictions = self.predict_samples(samples) if predictions is None else predictions
        return {k: float(v) for k, v in self.score(samples, predictions, resamples=0)["summary"].items()}

    def score(self, samples: Sequence[Sample], predictions, train: Sequence[Sample] = (), resamples: int = 500) -> dict:
        """See `score_pairs`."""
        return score_pairs(samples, predictions, self._class_weights, self.labels, resamples=resamples)

    def _class_weights(self, names: Sequence[str]) -> np.ndarray:
        return self.model.classifier(names, self.templates)[1].numpy()


def _start_vision(towers, path, compat) -> None:
    from unimed.models.checkpoints.unimed_clip import read_weights
    from unimed.models.clip.building import vision_start

    unused = vision_start(towers, read_weights(Path(path)), compat)
    logger.info("image tower starts from %s; %d tensors of it are not used", path, len(unused))


def _start_text(towers, folder) -> None:
    from unimed.models.checkpoints.reading import read_state_dict

    own = towers.text.transformer.state_dict()
    state = {name.removeprefix("bert."): tensor for name, tensor in read_state_dict(Path(folder)).items()}
    state = {name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
             for name, tensor in state.items()}  # fmt: skip
    missing = sorted(set(own) - set(state))
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors of the text tower are missing, first {missing[0]!r}")
    towers.text.transformer.load_state_dict({name: state[name] for name in own})
    logger.info("text tower starts from %s; %d tensors of it are not used", folder, len(set(state) - set(own)))
