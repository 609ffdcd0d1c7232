"""Training and scoring of Uni-Med: several tasks in one batch, each with its own way through the connector."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unimed.evaluation.scorers.multi_task import score_benchmarks, task_name
from unimed.io.result import Prediction
from unimed.models.building import build_model
from unimed.models.connectors import RoutingStatistics
from unimed.models.uni_med import UniMedModel
from unimed.registry import TASKS
from unimed.structures import Sample
from unimed.tasks.base import Task

#: Mean over all learnt tokens of a batch (as published), or over samples, so that long answers do not outweigh others.
REDUCTIONS = ("tokens", "samples")


@TASKS.register_module()
class MultiTask(Task):
    """A `UniMedModel` with its loss.

    Args:
        model: folder of a converted or exported Uni-Med; or dict(type="UniMed", llama=..., eva=...) with a new
            connector; or dict(type="SmallUniMed", ...) for one from nothing.
        connector: None keeps the connector of the folder; else one of these arguments starts from nothing.
        reduction: "tokens" or "samples".
        max_new_tokens, batch_size: of predictions.
        compat: "reference" scores and prompts as the published code does; by default as it should be.

    `routing` collects which task used which expert since it was last reset, `losses` the mean loss of each task.

    Raises:
        ValueError: unknown reduction.
    """

    undecayed_words = ("bias", "ln", "bn")
    headline_metrics = ("*/accuracy", "*/f1", "*/miou", "*/bleu-1")

    def __init__(
        self,
        model: str | dict,
        connector: dict | None = None,
        reduction: str = "tokens",
        max_new_tokens: int = 100,
        batch_size: int = 8,
        compat: str | None = None,
    ):
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction {reduction!r} is not known; choose one of: {', '.join(REDUCTIONS)}")
        built = build_model(model, UniMedModel, [("llama", "UniMed"), ("", "SmallUniMed")], connector=connector)
        super().__init__(_with_connector(built, connector) if isinstance(model, str) else built)
        self.model.processor.compat = compat
        self.reduction, self.compat = reduction, compat
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        config = self.model.connector.config
        self.routing = RoutingStatistics(config.tasks, config.num_experts) if config.is_moe else None
        self.losses: dict[str, list[float]] = {}

    def forward(self, batch: dict, **_) -> dict[str, torch.Tensor]:
        """`{"loss", "text"}` and "connector" where the connector has losses of its own (see `UniMedCollator`)."""
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            pixel_values=batch.get("pixel_values"),
            visual_mask=batch.get("visual_mask"),
            task=batch["image_task"],
            return_logits=False,
        )
        losses = {"text": output.loss if self.reduction == "tokens" else output.sample_losses.mean()}
        if "normalizers" in batch:
            shared = max(batch["normalizers"]["learnt"], 1)
            losses["text"] = losses["text"] * (self.normalizers(batch)["learnt"] / shared)
        losses["loss"] = losses["text"]
        if output.auxiliary_loss is not None:
            losses["connector"] = output.auxiliary_loss
            losses["loss"] = losses["text"] + output.auxiliary_loss
        if self.training:
            self._note(batch, output)
        return losses

    def normalizers(self, batch: dict) -> dict[str, int]:
        """What the loss is a mean of: learnt tokens, or samples."""
        tokens = self.reduction == "tokens"
        return {"learnt": int((batch["labels"][:, 1:] != -100).sum()) if tokens else len(batch["labels"])}

    def shard_modules(self) -> list:
        """Layers of the language model: they run in every forward pass, whatever the batch holds."""
        return list(self.model.language_model.model.layers)

    def _note(self, batch, output) -> None:
        for task, loss in zip(batch["task"], output.sample_losses.detach().tolist(), strict=True):
            self.losses.setdefault(task, []).append(loss)
        if self.routing is not None and output.routing is not None:
            self.routing.update(output.routing, self.model.connector.task_ids(batch["image_task"]))

    def task_summary(self) -> dict[str, float]:
        """Mean loss per task and mean routing weights per task and expert since the last call."""
        summary = {f"loss/{task}": sum(values) / len(values) for task, values in sorted(self.losses.items())}
        self.losses.clear()
        if self.routing is not None:
            summary |= self.routing.scalars()
            self.routing.reset()
        return summary

    def predict_samples(self, samples: Sequence[Sample]) -> list[Prediction]:
        """What the model answers to the first question of each sample."""
        images = [list(sample.images) for sample in samples]
        texts = [sample.conversation[0][1] for sample in samples]
        names = [task_name(s) for s in samples]
        return self.model.predict_batch(
            images, texts, names, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size
        )

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction], train: Sequence[Sample] = ()) -> dict:
        """One table per benchmark; see `score_benchmarks`."""
        return score_benchmarks(samples, predictions, self.compat)

    def export(self, folder) -> None:
        """Write the model as a Hugging Face folder. LoRA is merged into the weights and gone after it."""
        self.model.config.sft_type = "full"
        super().export(folder)


def _with_connector(model: UniMedModel, connector: dict | None) -> UniMedModel:
    if connector is None:
        return model
    from unimed.models.connectors import ConnectorConfig, build_connector
    from unimed.models.connectors.resample import resample

    config = model.config
    model.connector = build_connector(connector, config.vision["dim"], config.text_config.hidden_size)
    config.connector = model.connector.config.to_dict()
    patches = (config.vision["image_size"] // config.vision["patch_size"]) ** 2
    count = resample(torch.zeros(1, patches, 1), ConnectorConfig.from_dict(config.connector)).shape[1]
    processor = model.processor
    processor.options = type(processor.options)(**{**vars(processor.options), "tokens_per_image": count})
    return model
