"""Training and scoring of text-prompted segmenters: masks, edges and existence."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unimed.evaluation.contestants.models import answer_parsing
from unimed.evaluation.scorers.parsing import score_parsing
from unimed.io.result import Prediction
from unimed.losses.parsing import parsing_losses
from unimed.models.boltzformer import BoltzFormerModel
from unimed.models.building import build_model
from unimed.registry import TASKS
from unimed.structures import Sample
from unimed.tasks.base import Task

#: Weights of the summed loss as in the published fine-tuning: masks are dice plus cross entropy, edges the same.
LOSS_WEIGHTS = {"dice": 1.0, "bce": 1.0, "edge": 1.0, "existence": 1.0}


@TASKS.register_module()
class ParseTask(Task):
    """A `BoltzFormerModel` with its losses.

    Args:
        model: folder of a model or a published checkpoint, or dict(type="SmallBoltzFormer", ...) for one that starts
            from nothing.
        channels: "rgb" or "slices" changes what the channels hold and the mean they are normalised by; None keeps it.
        freeze: name prefixes of parameters that are not trained.
        loss_weights: changes to `LOSS_WEIGHTS`.
        positive_weight: of present targets in the existence loss.
        learning_rates: {name prefix of parameters: factor on the learning rate}.
        seed: of the sampling in predictions; training draws from the global generator.
        threshold: existence from which a target counts as there.
        batch_size: images or slices encoded at a time in predictions.
    """

    headline_metrics = ("dice*", "existence_auroc", "existence_f1")
    card_tags = ("medical", "image-segmentation")
    card_example = 'model.predict("image.png", "left kidney[SEP]liver").regions'

    def __init__(
        self,
        model: str | dict,
        channels: str | None = None,
        freeze: Sequence[str] = (),
        loss_weights: dict | None = None,
        positive_weight: float = 3.0,
        learning_rates: dict | None = None,
        seed: int = 0,
        threshold: float = 0.5,
        batch_size: int = 8,
    ):
        model = build_model(model, BoltzFormerModel, [("", "SmallBoltzFormer")])
        super().__init__(model, learning_rates)
        if channels is not None:
            self.model.set_channels(channels)
        unknown = set(loss_weights or {}) - set(LOSS_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown loss weights {sorted(unknown)}; known are {', '.join(LOSS_WEIGHTS)}")
        self.loss_weights = LOSS_WEIGHTS | (loss_weights or {})
        self.positive_weight = positive_weight
        self.seed, self.threshold, self.batch_size = seed, threshold, batch_size
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(freeze)))
        self.train()

    def decays(self, name, parameter) -> bool:
        """Every parameter, as published."""
        return True

    def normalizers(self, batch: dict) -> dict[str, float]:
        """Prompts of a batch, so that ranks and micro-batches with more prompts count for more."""
        return {"prompts": float(len(batch["labels"]))}

    def forward(self, batch: dict, **_) -> dict[str, torch.Tensor]:
        """`{"loss", "dice", "bce", "edge", "existence", "existence_accuracy"}` of a batch of `ParseCollator`."""
        output = self.model(
            pixel_values=batch["pixel_values"],
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            num_prompts=batch["num_prompts"].tolist(),
        )
        each = parsing_losses(
            output.masks, output.existence, batch["labels"], output.edges, positive_weight=self.positive_weight
        )
        present = each.pop("present")
        prompts = batch.get("normalizers", {}).get("prompts", len(present))
        losses = {name: values.sum() / prompts for name, values in each.items()}
        losses["loss"] = sum(self.loss_weights[name] * value for name, value in losses.items())
        right = (output.existence[:, 0].detach() > 0) == (present > 0.5)
        return losses | {"existence_accuracy": right.float().mean()}

    def predict_samples(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Masks and existence for the phrases of each sample; it never sees where they are, or whether.

        A sample whose image is a volume DxHxW is asked as users ask, and its masks are volumes too.
        """
        options = dict(batch_size=self.batch_size, presence_threshold=self.threshold, seed=self.seed)
        return answer_parsing(self.model, samples, **options)

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction], train: Sequence[Sample] = ()) -> dict:
        """Metrics, tables and per-case rows."""
        return score_parsing(samples, predictions)
