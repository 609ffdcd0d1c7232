"""Base class of tasks: what the engine asks of every training objective, as methods with defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unimed.evaluation.evaluating import scores_of
from unimed.io.result import Prediction
from unimed.models.lora import merge_lora
from unimed.structures import Sample


class Task(nn.Module):
    """A model with its losses, its scores and how it is exported. Register subclasses with `TASKS`.

    A subclass writes `forward`, and for validation and test `predict_samples` and `score`; everything else has a
    default that it may replace. The engine calls only what is named here.

    Args:
        model: what is trained; None where a task holds its modules itself and overrides what asks for `model`.
        learning_rates: {prefix of a parameter name of the model: factor on the learning rate}.
    """

    #: Parameters whose name holds one of these words are not decayed (as vectors and scalars never are).
    undecayed_words: tuple[str, ...] = ()
    #: Numbers of `validate` that stand in the log line, in this order (`*` as in file names); `train.jsonl` has all.
    headline_metrics: tuple[str, ...] = ()
    #: Whether `score` puts baselines made of the training samples beside its numbers.
    scores_against_training_data = False
    #: Tags and the line of Python in the model card.
    card_tags: tuple[str, ...] = ("medical", "image-segmentation", "image-text-to-text")
    card_example = 'model.predict("image.png", "Segment the nuclei.")'

    def __init__(self, model: nn.Module | None = None, learning_rates: Mapping[str, float] | None = None):
        super().__init__()
        self.model = model
        self.learning_rates = dict(learning_rates or {})

    # -- training ---------------------------------------------------------------------------------------------------
    @property
    def processor(self):
        """What the collator makes tensors with; None where it needs nothing."""
        return None if self.model is None else self.model.processor

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Losses of a batch: "loss", the scalar that is minimized, and any other scalars to be logged."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """The one rule of weight decay: matrices are decayed, vectors, scalars and `undecayed_words` are not."""
        return parameter.ndim > 1 and not any(word in name for word in self.undecayed_words)

    def train_parameters(self) -> list[dict]:
        """Parameter groups for the optimizer: {"params", "lr_mult", and "weight_decay" 0 where it does not decay}.

        Groups come in the order in which their learning-rate factors first occur, decayed ones first.
        """
        groups: dict[float, dict[bool, list]] = {}
        for name, parameter in (self if self.model is None else self.model).named_parameters():
            if parameter.requires_grad:
                factor = next((f for prefix, f in self.learning_rates.items() if name.startswith(prefix)), 1.0)
                groups.setdefault(factor, {True: [], False: []})[self.decays(name, parameter)].append(parameter)
        return [
            {"params": parameters, "lr_mult": factor} | ({} if decayed else {"weight_decay": 0.0})
            for factor, both in groups.items()
            for decayed, parameters in both.items()
            if parameters
        ]

    def normalizers(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Counts that the terms of the loss are divided by, {} where they are means of their own batch.

        The engine puts their average over all ranks and micro-batches into `batch["normalizers"]`: sums divided by it
        make several ranks, or accumulation, equal to one joined batch.
        """
        return {}

    def shard_modules(self) -> list[nn.Module]:
        """Modules that run in every forward pass, whatever the batch holds; FSDP2 and ZeRO split them one by one."""
        return []

    def after_step(self) -> None:
        """Called after every optimizer step, to keep a parameter within bounds, say."""

    def gradient_checkpointing_enable(self) -> None:
        """Compute activations again in the backward pass.

        Raises:
            ValueError: no model in the task supports it.
        """
        found = [m for m in self.modules() if getattr(m, "supports_gradient_checkpointing", False)]
        if not found:
            raise ValueError("gradient_checkpointing=True, but neither the task nor a model in it supports it")
        for module in found:
            # Ours leave single parts out; transformers' own name is the fallback.
            enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
            enable()

    def task_summary(self) -> dict[str, float] | None:
        """Numbers per kind of task since the last call ("loss/<task>", "routing/<task>/expert_<n>"); None: not kept."""
        return None

    # -- scores -----------------------------------------------------------------------------------------------------
    def predict_samples(self, samples: Sequence[Sample]) -> list[Prediction]:
        """What the model answers to each sample; it never sees the answer."""
        raise NotImplementedError(f"{type(self).__name__} cannot predict; it can be trained only")

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction], train: Sequence[Sample] = ()) -> dict:
        """Whatever `unimed.evaluation.evaluating.scores_of` takes: rows; {"summary": {name: number}} and, where there
        are, "tables" and "cases"; or plain {name: number}. The engine writes one shape of files from it.

        Args:
            train: training samples, where `scores_against_training_data`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def validate(self, samples: Sequence[Sample], predictions: Sequence[Prediction] | None = None) -> dict[str, float]:
        """Numbers shown while training: the summary of `score`.

        Args:
            predictions: of these samples, where they were made already.
        """
        predictions = self.predict_samples(samples) if predictions is None else predictions
        numbers = scores_of(self.score(samples, predictions))["summary"]
        return {k: v for k, v in numbers.items() if isinstance(v, int | float) and not isinstance(v, bool)}

    def export(self, folder: str | Path) -> None:
        """Write the model as a Hugging Face folder. LoRA is merged into the weights and gone after it.

        Raises:
            ValueError: the task has no model to export.
        """
        if self.model is None:
            raise ValueError(f"{type(self).__name__} has no model to export")
        merge_lora(self.model)
        self.model.save_pretrained(folder)
