"""Training and scoring of grounded models: text, masks, boxes and presence in one loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from unimed.evaluation.benchmarks import benchmark
from unimed.evaluation.contestants.models import answer_grounded, routed_name
from unimed.evaluation.evaluating import scores_of
from unimed.evaluation.honesty import honesty_samples, score_honesty
from unimed.evaluation.scorers.grounding import score_grounding
from unimed.evaluation.scorers.multi_task import score_benchmarks
from unimed.io.result import Prediction
from unimed.losses.box import box_loss
from unimed.losses.matching import match_targets
from unimed.losses.pair_alignment import PairAlignment
from unimed.losses.segmentation import mask_losses
from unimed.models.building import build_model
from unimed.models.connectors import RoutingStatistics
from unimed.models.grounded import GroundedMLLM
from unimed.models.heads.mask import FeatureCache
from unimed.models.lora import add_lora
from unimed.models.weights import weights_digest
from unimed.registry import TASKS, formerly
from unimed.structures import Sample
from unimed.structures import Task as TaskName
from unimed.tasks.base import Task

#: Weights of the summed loss; mask weights are those of UniBiomed.
LOSS_WEIGHTS = {
    "text": 1.0, "dice": 0.5, "bce": 2.0, "presence": 0.5, "box": 1.0, "connector": 1.0, "pairs": 0.0,
}  # fmt: skip
REDUCTIONS = ("tokens", "samples")
#: What each term is a mean of; the connector's own loss is averaged over ranks.
COUNTED = {"text": "tokens", "dice": "masks", "bce": "masks", "presence": "regions", "box": "boxes"}

#: What of a batch the model reads; the rest are targets and names.
INPUTS = (
    "input_ids attention_mask labels pixel_values image_grid_thw mask_pixel_values layout position_ids native"
).split()

#: Types of `model` dicts that do not name theirs (see `unimed.models.building.described`).
UNTYPED = (
    ("llava", "UMedGround"), ("llama", "UniMed"), ("backbone", "GroundedMLLM"), ("tiny", "TinyGroundedMLLM"),
    ("", "SmallGroundedMLLM"),
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
        loss_weights: changes to `LOSS_WEIGHTS`. With `pairs` above 0, image tokens and captions of samples of task
            "caption" are also told from other pairs (`unimed.losses.pair_alignment`); what that learns beside the
            model is not exported.
        mask_points: points per mask the mask loss looks at; None looks at every pixel.
        cache_images: images whose features are kept in memory while the encoder is frozen; 0 encodes anew each time.
        cache_folder: with `cache_images`, folder in which features of a frozen encoder outlive the run (half a megabyte
            per image of 128 px): resumed runs, tests, and other seeds find them by the encoder's weights.
        max_new_tokens, batch_size: of predictions during validation and test.
        learning_rates: {name prefix of parameters: factor on the learning rate}.
        box_options: changes to `unimed.losses.box.OPTIONS`.
        reduction: the language loss is the mean over all learnt tokens ("tokens"), or over samples ("samples"), so that
            long answers do not outweigh others.
        connector: arguments of `build_connector` for a new connector in the place of the model's.
        scores: "grounding" scores what answers point at (`score_grounding`); "benchmarks" gives one set of numbers for
            each benchmark, as Uni-Med does (`score_benchmarks`); any other word names a registered benchmark whose
            scorer takes samples and predictions.
        compat: "reference" prompts and scores as published Uni-Med does.
        honesty_samples: in a test (`scores="grounding"`), of how many samples further questions are made: other
            wordings, nonsense, mirrored images (`unimed.evaluation.honesty`). 0 asks none.

    `routing` collects which task used which expert since it was last reset, `task_losses` the loss of each task.
    """

    headline_metrics = ("dice_mean_over_targets", "grounding_rate", "presence_auroc", "miou_mean_over_*", "accuracy/*")
    card_example = 'model.predict("image.png", "Segment the nuclei.").regions[0].mask'

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
        cache_folder: str | None = None,
        max_new_tokens: int = 128,
        batch_size: int = 8,
        learning_rates: dict | None = None,
        box_options: dict | None = None,
        reduction: str = "tokens",
        connector: dict | None = None,
        scores: str = "grounding",
        compat: str | None = None,
        honesty_samples: int = 24,
    ):
        # Builders of small models and of Uni-Med put the connector in themselves.
        given = {} if connector is None else {"connector": connector}
        # Small models without a type were Uni-Med's where its benchmarks are scored.
        untyped = (*UNTYPED[:-1], ("", "SmallUniMed")) if scores == "benchmarks" else UNTYPED
        if isinstance(model, dict) and set(model) == {"type", "path"} and model["type"] == "Pretrained":
            model = model["path"]
        built = build_model(model, GroundedMLLM, untyped, **given)
        if connector is not None and isinstance(model, (str, GroundedMLLM)):
            built.replace_connector(connector)
        super().__init__(built, learning_rates)
        if compat is not None:
            self.processor.compat = compat
        self.scores, self.compat, self.honesty_samples = scores, compat, honesty_samples
        if scores not in ("grounding", "benchmarks"):
            benchmark(scores)
        if scores == "benchmarks":
            self.headline_metrics = ("*/accuracy", "*/f1", "*/miou", "*/bleu-1")
            self.card_tags = ("medical", "visual-question-answering", "image-text-to-text")
            self.card_example = 'model.predict("image.png", "Which organ is shown?", "vqa").text'
        unknown = set(loss_weights or {}) - set(LOSS_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown loss weights {sorted(unknown)}; known are {', '.join(LOSS_WEIGHTS)}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction {reduction!r} is not known; choose one of: {', '.join(REDUCTIONS)}")
        self.reduction = reduction
        self.task_losses: dict[str, list[float]] = {}
        connector = self.model.connector
        self.routing = None
        if connector is not None and connector.num_experts:
            self.routing = RoutingStatistics(connector.tasks, connector.num_experts)
        self.loss_weights = LOSS_WEIGHTS | (loss_weights or {})
        self.pair_alignment = None
        if self.loss_weights["pairs"] > 0:
            self.pair_alignment = PairAlignment(self.model.backbone.hidden_dim)
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
            self.model.mask_head.cache = FeatureCache(cache_images, self._features(cache_folder))

    def _features(self, folder: str | None) -> Path | None:
        """Folder of the features of this encoder, whatever is trained behind it."""
        encoder = getattr(self.model.mask_head, "encoder", None)
        if folder is None or encoder is None or any(p.requires_grad for p in encoder.parameters()):
            return None
        return Path(folder) / weights_digest(encoder)[:24]

    def forward(self, batch: dict, **_) -> dict[str, torch.Tensor]:
        """`{"loss", "text", "dice", "bce", "presence", "box", ...}` of one batch (see `GroundedCollator`)."""
        routed = self._routing(batch)
        given = {name: batch[name] for name in INPUTS if name in batch}
        if self.model.mask_head is not None and self.model.mask_head.learns_boxes and len(batch["masks"]):
            given["mask_boxes"] = boxes_around(batch["masks"], self.model.mask_head.image_size)
        output = self.model(**given, task=routed, return_logits=False)
        if self.training:
            self._note(batch, output, routed)
        # A rank without masks or boxes still touches every head, so that the gradients of all ranks have one shape.
        losses = {"text": output.loss if self.reduction == "tokens" else output.sample_losses.mean()}
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
            losses |= self._mask_losses(output.masks, batch["masks"], present)
            for given in (output.box_masks, output.guided_masks):
                if given is not None:
                    shown = present & batch["masks"].flatten(1).any(dim=1)
                    further = mask_losses(given.logits[shown], batch["masks"][shown], self.mask_points)
                    for name, value in further.items():
                        losses[name] = (losses[name] + value) / (1 + int(bool(shown.any())))
            if output.presence_logits is not None:
                losses["presence"] = F.binary_cross_entropy_with_logits(
                    output.presence_logits.float(), batch["presence"].float()
                )
        if output.boxes is not None:
            losses["box"] = self.box_losses(output, batch)
        if output.auxiliary_loss is not None:
            losses["connector"] = output.auxiliary_loss
        if self.pair_alignment is not None:
            losses["pairs"] = self._pair_loss(batch, output)
        if "normalizers" in batch:
            # Each term is a mean over what this batch holds; together with the other ranks it is one over all.
            here, shared = self.normalizers(batch), batch["normalizers"]
            for name, count in COUNTED.items():
                if shared[count] and name in losses:
                    losses[name] = losses[name] * (here[count] / shared[count])
        losses["loss"] = sum(self.loss_weights[name] * value for name, value in losses.items())
        return losses

    def _mask_losses(self, masks, targets: torch.Tensor, present: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses of masks; coarser ones count half as much from scale to scale (deep supervision as of nnU-Net)."""
        levels = [masks.logits] if masks.deep_logits is None else [masks.logits, *masks.deep_logits.unbind(dim=1)]
        weights = [0.5**level for level in range(len(levels))]
        found = [mask_losses(level[present], targets[present], self.mask_points) for level in levels]
        return {
            name: sum(weight * one[name] for weight, one in zip(weights, found, strict=True)) / sum(weights)
            for name in found[0]
        }

    def _pair_loss(self, batch: dict, output) -> torch.Tensor:
        """Loss of the captions of a batch against the images they belong to.

        A caption is read on its own, without its image: in the conversation its states have seen the answer.
        """
        zero = self._nothing(self.pair_alignment)
        chosen = [row for row, caption in enumerate(batch.get("captions", ())) if caption]
        if not chosen or output.image_tokens is None:
            return zero
        flat, layout = output.image_tokens.flatten(0, -2), batch["layout"]
        known = self.model.tokens_by_image(flat, layout, batch.get("image_grid_thw"), batch["input_ids"])
        images = torch.stack([known[int(layout.image_of_sample[row])].mean(dim=0) for row in chosen])
        captions = [batch["captions"][row] for row in chosen]
        read = self.processor.tokenizer(captions, padding=True, return_tensors="pt", add_special_tokens=False)
        ids, mask = read["input_ids"].to(self.model.device), read["attention_mask"].to(self.model.device)
        states = self.model.language_model(
            inputs_embeds=self.model.embed_tokens(ids), attention_mask=mask, use_cache=False
        ).last_hidden_state
        weights = mask[..., None].to(states.dtype)
        texts = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return zero + self.pair_alignment(images, texts, captions)

    def train_parameters(self) -> list[dict]:
        """As every task, and what the contrastive side loss learns beside the model."""
        own = [] if self.pair_alignment is None else list(self.pair_alignment.parameters())
        groups = super().train_parameters()
        return groups + [{"params": own, "lr_mult": 1.0, "weight_decay": 0.0}] if own else groups

    def _routing(self, batch: dict) -> torch.Tensor | None:
        """Task ids of the samples, where the connector routes by task."""
        connector = self.model.connector
        if connector is None or not connector.needs_task:
            return None
        known, shown = connector.tasks, batch["layout"].per_sample.tolist()
        # A sample without an image passes no connector, whatever its task.
        names = [
            routed_name(task, known) if count else known[0] for task, count in zip(batch["tasks"], shown, strict=True)
        ]
        return connector.task_ids(names).to(self.model.device)

    def _note(self, batch: dict, output, routed) -> None:
        for task, loss in zip(batch["tasks"], output.sample_losses.detach().tolist(), strict=True):
            self.task_losses.setdefault(task.short if self.routing else task.value, []).append(loss)
        if self.routing is not None and output.routing is not None and routed is not None:
            self.routing.update(output.routing, batch["layout"].per_tile(routed))

    def task_summary(self) -> dict[str, float]:
        """Mean loss per task and mean routing weights per task and expert since the last call."""
        summary = {f"loss/{task}": sum(values) / len(values) for task, values in sorted(self.task_losses.items())}
        self.task_losses.clear()
        if self.routing is not None:
            summary |= self.routing.scalars()
            self.routing.reset()
        return summary

    def normalizers(self, batch: dict) -> dict[str, int]:
        """Counts that the terms of the loss are divided by."""
        present = batch["presence"] > 0.5
        return {
            "tokens": int((batch["labels"][:, 1:] != -100).sum())
            if self.reduction == "tokens"
            else len(batch["tasks"]),
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
        return answer_grounded(
            self.model, samples, batch_size=self.batch_size, max_new_tokens=self.max_new_tokens, blank=blank
        )

    @property
    def scores_against_training_data(self) -> bool:
        """Own scores stand beside baselines; published protocols know none."""
        return self.scores == "grounding"

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction], train: Sequence[Sample] = ()) -> dict:
        """Metrics, tables and per-case rows; baselines beside them where the training samples are given."""
        if self.scores == "benchmarks":
            return score_benchmarks(samples, predictions, self.compat)
        if self.scores != "grounding":
            return scores_of(benchmark(self.scores).score(samples, predictions))
        blind = self.predict_samples(_answerable(samples), blank=True) if train else None
        scores = score_grounding(samples, predictions, train, blind)
        asked = honesty_samples(samples, self.honesty_samples)
        if not len(asked):
            return scores
        there = [row for row in scores["cases"] if row["kind"] == "presence"]
        honest = score_honesty(samples, predictions, asked, self.predict_samples(asked.samples), there)
        return {
            "summary": scores["summary"] | honest["summary"],
            "tables": scores["tables"] | honest["tables"],
            "cases": [*scores["cases"], *honest["cases"]],
        }

    def validate(self, samples: Sequence[Sample], predictions: Sequence[Prediction] | None = None) -> dict[str, float]:
        """The summary of `score`, without what only a test asks; benchmarks without intervals, which nobody sees."""
        predictions = self.predict_samples(samples) if predictions is None else predictions
        if self.scores == "benchmarks":
            return score_benchmarks(samples, predictions, self.compat, resamples=0)["summary"]
        further, self.honesty_samples = self.honesty_samples, 0
        try:
            return super().validate(samples, predictions)
        finally:
            self.honesty_samples = further

    def export(self, folder) -> None:
        """Write the model as a Hugging Face folder. LoRA is merged into the weights and gone after it."""
        self.model.config.language_tuning = "full"
        super().export(folder)


#: Uni-Med's own task, with what it did by itself.
formerly("MultiTask", TASKS, type="GroundingTask", scores="benchmarks", max_new_tokens=100)


def boxes_around(masks: torch.Tensor, side: int) -> torch.Tensor:
    """Boxes [N, 4] (xyxy in pixels of a square of `side`) around masks [N, h, w]; the whole square for empty ones."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    for start, across in ((0, 1), (1, 2)):
        seen = (masks > 0.5).any(dim=across)  # columns [N, w], then rows [N, h]
        length = seen.shape[1]
        boxes[:, start] = seen.float().argmax(dim=1) * side / length
        boxes[:, start + 2] = (length - seen.flip(1).float().argmax(dim=1)) * side / length
    return boxes


def _per_mask(of_seg: torch.Tensor, batch: dict) -> torch.Tensor:
    """Values of the [SEG] of a batch for its masks: a [SEG] that speaks of several frames has one mask in each."""
    index = batch["layout"].seg_of_mask
    return of_seg if index is None else of_seg[index.to(of_seg.device)]


def _check_names(model, prefixes: Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"no parameter of the model begins with {prefix!r}")


def _answerable(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.task in (TaskName.VQA, TaskName.CLASSIFICATION)]
