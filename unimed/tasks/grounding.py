"""Training and scoring of grounded models: text, masks, boxes and presence in one loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from unimed.data.collate.grounded import volume_to_uint8
from unimed.evaluation.scorers.grounding import score_grounding
from unimed.io.result import Prediction
from unimed.losses.box import box_loss
from unimed.losses.matching import match_targets
from unimed.losses.segmentation import mask_losses
from unimed.models.building import build_model
from unimed.models.grounded import GroundedMLLM
from unimed.models.heads.mask import FeatureCache
from unimed.models.lora import add_lora
from unimed.registry import TASKS
from unimed.structures import Sample
from unimed.tasks.base import Task

#: Weights of the summed loss; mask weights are those of UniBiomed.
LOSS_WEIGHTS = {"text": 1.0, "dice": 0.5, "bce": 2.0, "presence": 0.5, "box": 1.0, "connector": 1.0}
#: Tasks of records under the names of Uni-Med's connector, where a connector does not list them itself.
ROUTED_AS = {
    "classification": "cls",
    "report": "caption",
    "region": "identify",
    **dict.fromkeys(("referring", "box", "absent", "volume"), "refer"),
}
#: What each term is a mean of; the connector's own loss is averaged over ranks.
COUNTED = {"text": "tokens", "dice": "masks", "bce": "masks", "presence": "regions", "box": "boxes"}

#: What of a batch the model reads; the rest are targets and names.
INPUTS = ("input_ids attention_mask labels pixel_values image_grid_thw mask_pixel_values layout position_ids").split()

#: Types of `model` dicts that do not name theirs (see `unimed.models.building.described`).
UNTYPED = (
    ("llava", "UMedGround"), ("backbone", "GroundedMLLM"), ("tiny", "TinyGroundedMLLM"), ("", "SmallGroundedMLLM"),
)  # fmt: skip


@TASKS.register_module()
class GroundingTask(Task):
    """A `GroundedMLLM` with its losses.

    Args:
        model: folder of a grounded model (ours, or a published one), a model, or dict(type=...): "GroundedMLLM" puts
            published parts together, "SmallGroundedMLLM" starts from nothing (see `unimed.models.building`).
        lora: arguments of peft's `LoraConfig` for the language model; None trains it whole.
        freeze: name prefixes of parameters that are not trained.
        trainable: name prefixes of parameters that are trained beside the adapters although `lora` freezes what they
            are part of, such as the embeddings.
        frozen_dtype: dtype of frozen parameters, such as "bfloat16" (for `precision="bf16"`).
        loss_weights: changes to `LOSS_WEIGHTS`.
        mask_points: points per mask the mask loss looks at; None looks at every pixel.
        cache_images: images whose features are kept while the encoder is frozen; 0 encodes anew each time.
        max_new_tokens, batch_size: of predictions during validation and test.
        learning_rates: {name prefix of parameters: factor on the learning rate}.
        box_options: changes to `unimed.losses.box.OPTIONS`.
    """

    headline_metrics = ("dice_mean_over_targets", "grounding_rate", "presence_auroc", "miou_mean_over_*", "accuracy/*")

    def __init__(
        self,
        model: str | dict | GroundedMLLM,
        lora: dict | None = None,
        freeze: Sequence[str] = (),
        trainable: Sequence[str] = (),
        frozen_dtype: str | None = None,
        loss_weights: dict | None = None,
        mask_points: int | None = None,
        cache_images: int = 0,
        max_new_tokens: int = 128,
        batch_size: int = 8,
        learning_rates: dict | None = None,
        box_options: dict | None = None,
    ):
        super().__init__(build_model(model, GroundedMLLM, UNTYPED), learning_rates)
        unknown = set(loss_weights or {}) - set(LOSS_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown loss weights {sorted(unknown)}; known are {', '.join(LOSS_WEIGHTS)}")
        self.loss_weights = LOSS_WEIGHTS | (loss_weights or {})
        self.mask_points = mask_points
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.box_options = dict(box_options or {})
        for name, parameter in self.model.named_parameters():
            if name.startswith(tuple(freeze)):
                parameter.requires_grad_(False)
        if lora is not None:
            add_lora(self.model.language_model, lora)
        _check_names(self.model, [*freeze, *trainable])
        for name, parameter in self.model.named_parameters():
            if trainable and name.startswith(tuple(trainable)):
                parameter.requires_grad_(True)
            elif frozen_dtype is not None and not parameter.requires_grad:
                parameter.data = parameter.data.to(getattr(torch, frozen_dtype))
        if cache_images and hasattr(self.model.mask_head, "cache"):
            self.model.mask_head.cache = FeatureCache(cache_images)

    def forward(self, batch: dict, **_) -> dict[str, torch.Tensor]:
        """`{"loss", "text", "dice", "bce", "presence", "box", ...}` of one batch (see `GroundedCollator`)."""
        output = self.model(
            **{name: batch[name] for name in INPUTS if name in batch}, task=self._routing(batch), return_logits=False
        )
        # A rank without masks or boxes still touches every head, so that the gradients of all ranks have one shape.
        losses = {"text": output.loss}
        if self.model.presence_head is not None:
            losses["presence"] = self._nothing(self.model.presence_head)
        if self.model.mask_head is not None:
            losses |= {"dice": self._nothing(self.model.seg_projection), "bce": self._nothing(self.model.mask_head)}
        if self.model.box_head is not None:
            losses["box"] = self._nothing(self.model.box_head)
        if output.masks is not None:
            # Without a head that says so, an empty mask is the only way to say that a thing is not there.
            present = (batch["presence"] > 0.5) | (self.model.presence_head is None)
            # Frames of a volume that do not show the thing count: their target is empty.
            present = _per_mask(present, batch)
            losses |= mask_losses(output.masks.logits[present], batch["masks"][present], self.mask_points)
            if output.presence_logits is not None:
                losses["presence"] = F.binary_cross_entropy_with_logits(
                    output.presence_logits.float(), batch["presence"].float()
                )
        if output.boxes is not None:
            losses["box"] = self.box_losses(output, batch)
        if output.auxiliary_loss is not None:
            losses["connector"] = output.auxiliary_loss
        if "normalizers" in batch:
            # Each term is a mean over what this batch holds; together with the other ranks it is one over all.
            here, shared = self.normalizers(batch), batch["normalizers"]
            for name, count in COUNTED.items():
                if shared[count] and name in losses:
                    losses[name] = losses[name] * (here[count] / shared[count])
        losses["loss"] = sum(self.loss_weights[name] * value for name, value in losses.items())
        return losses

    def _routing(self, batch: dict) -> torch.Tensor | None:
        """Task ids of the samples, where the connector routes by task."""
        connector = self.model.connector
        if connector is None or not connector.needs_task:
            return None
        ids = connector.task_ids([_known(name, connector.config.tasks) for name in batch["tasks"]])
        return ids.to(self.model.device)

    def normalizers(self, batch: dict) -> dict[str, int]:
        """Counts that the terms of the loss are divided by."""
        present = batch["presence"] > 0.5
        return {
            "tokens": int((batch["labels"][:, 1:] != -100).sum()),
            "masks": int(_per_mask(present, batch).sum()),
            "regions": len(batch["presence"]),
            "boxes": len(batch["boxes_xyxy"]),
        }

    def shard_modules(self) -> list:
        """Layers of the language model: they run in every forward pass, whatever the batch holds."""
        return list(self.model.language_model.layers)

    def box_losses(self, output, batch) -> torch.Tensor:
        """Loss of all boxes; those of one phrase are matched to its [BOX] tokens first."""
        target = batch["boxes_xyxy"]
        order = match_targets(output.boxes.boxes_xyxy.detach(), target, batch["box_groups"])
        return sum(box_loss(output.boxes, target[order], self.box_options).values())

    def _nothing(self, module) -> torch.Tensor:
        """Zero that depends on every trainable parameter of a module."""
        zero = torch.zeros((), device=self.model.device)
        return sum((p.sum() * 0.0 for p in module.parameters() if p.requires_grad), start=zero)

    def predict_samples(self, samples: Sequence[Sample], blank: bool = False) -> list[Prediction]:
        """What the model answers to the question of each sample; it never sees the answer.

        Args:
            blank: black images instead of the real ones, for the language-only baseline.
        """
        connector = self.model.connector
        if connector is None or not connector.needs_task:
            return self._predict(samples, blank)
        names = [_known(str(s.labels.get("task", "")), connector.config.tasks) for s in samples]
        predictions = {}
        for task in dict.fromkeys(names):
            places = [place for place, name in enumerate(names) if name == task]
            with self.model.routed_as(task):
                made = self._predict([samples[place] for place in places], blank)
            predictions |= dict(zip(places, made, strict=True))
        return [predictions[place] for place in range(len(samples))]

    def _predict(self, samples: Sequence[Sample], blank: bool) -> list[Prediction]:
        options = dict(max_new_tokens=self.max_new_tokens)
        images, kept, flat, predictions = [], {}, [], {}
        for index, sample in enumerate(samples):
            image = sample.images[0]
            key = sample.sample_id if blank else id(image)
            kept[key] = np.zeros_like(image) if blank else image
            if sample.labels.get("task") == "volume" and image.ndim == 3:
                kept[key] = np.zeros(image.shape, np.uint8) if blank else volume_to_uint8(sample)
                predictions[index] = self.model.predict_frames(list(kept[key]), sample.conversation[0][1], **options)
            else:
                flat.append(index)
                images.append(kept[key])
        given = [samples[i].regions if samples[i].labels.get("task") == "region" else None for i in flat]
        texts = [samples[i].conversation[0][1] for i in flat]
        answers = self.model.predict_batch(images, texts, given, batch_size=self.batch_size, **options)
        predictions |= dict(zip(flat, answers, strict=True))
        return [predictions[index] for index in range(len(samples))]

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction], train: Sequence[Sample] = ()) -> dict:
        """Metrics, tables and per-case rows; baselines beside them where the training samples are given."""
        blind = self.predict_samples(_answerable(samples), blank=True) if train else None
        return score_grounding(samples, predictions, train, blind)


def _per_mask(of_seg: torch.Tensor, batch: dict) -> torch.Tensor:
    """Values of the [SEG] of a batch for its masks: a [SEG] that speaks of several frames has one mask in each."""
    index = batch["layout"].seg_of_mask
    return of_seg if index is None else of_seg[index.to(of_seg.device)]


def _check_names(model, prefixes: Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"no parameter of the model begins with {prefix!r}")


def _known(task: str, tasks: Sequence[str]) -> str:
    """The connector's name of a task: its own, or Uni-Med's for it."""
    return task if task in tasks else ROUTED_AS.get(task, task)


def _answerable(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.labels.get("task") in ("vqa", "classification")]
