"""Medical report grounding: a `GroundedMLLM` that finds the phrases of a report and their boxes (uMedGround)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from unimed.evaluation.benchmarks import benchmark
from unimed.evaluation.robustness import disturb, settings
from unimed.evaluation.scorers.reports import box_cases, disturbed_scores, pair_phrases
from unimed.io.result import Prediction
from unimed.losses import box_published
from unimed.metrics.calibration import Calibration
from unimed.models.building import build_model
from unimed.models.grounded import GroundedMLLM
from unimed.models.grounded.teacher_forcing import teacher_forced
from unimed.models.lora import add_lora
from unimed.registry import TASKS
from unimed.structures import Region, Sample
from unimed.tasks.grounding import UNTYPED, GroundingTask

PROTOCOLS = ("free", "teacher")


@TASKS.register_module()
class ReportGrounding(GroundingTask):
    """uMedGround's training and scoring.

    Args:
        model: folder, or dict(type=...): "UMedGround" joins LLaVA and SAM, "SmallUMedGround" starts from nothing.
        protocol: "free", the model reads the question alone; "teacher", boxes of the true answer, as published.
        language_box: weight of the published second head's loss; its head stays frozen, as published.
        sam_lora: arguments of peft's `LoraConfig` for SAM's encoder; None leaves it as `freeze` says. (The published
            `--lora_sam_rank` could never learn: its encoder ran without gradient.)
        robustness: {"kinds": (...), "severities": (...)}: also score disturbed images in the test.
        calibration: calibration file whose outer boxes and confidence are scored under disturbance.
        compat: "reference": published losses (first box of an image, summed over images), and the published table.
        options: of `GroundingTask`.

    Raises:
        ValueError: an unknown protocol or compat.
    """

    headline_metrics = ("miou_mean_over_phrases", "acc@0.5", "phrase_f1", "false_box_rate")
    card_tags = ("medical", "phrase-grounding", "image-text-to-text")
    card_example = 'model.predict("chest.png", "Small left pleural effusion.").regions[0].box_xyxy_px'
    scores_against_training_data = True

    def __init__(
        self,
        model: str | dict,
        protocol: str = "free",
        language_box: float = 0.0,
        sam_lora: dict | None = None,
        robustness: dict | None = None,
        calibration: str | None = None,
        compat: str | None = None,
        **options,
    ):
        if protocol not in PROTOCOLS or compat not in (None, "reference"):
            raise ValueError(f"protocol is one of {', '.join(PROTOCOLS)}, compat None or 'reference'")
        model = build_model(model, GroundedMLLM, [("texts", "SmallUMedGround"), *UNTYPED])
        super().__init__(model, **options)
        self.protocol, self.language_box, self.compat = protocol, language_box, compat
        self.robustness = robustness
        self.calibration = None if calibration is None else Calibration.load(calibration)
        if self.model.config.language_box_head:
            self.model.language_box_head.requires_grad_(False)
        if sam_lora is not None:
            add_lora(self.model.mask_head.sam.vision_encoder, {"target_modules": ["qkv"]} | dict(sam_lora))

    def box_losses(self, output, batch) -> torch.Tensor:
        """Loss of all boxes; with compat="reference" that of the first box of each image, summed over images."""
        if self.compat == "reference":
            return self._published_losses(output, batch)
        loss = super().box_losses(output, batch)
        if self.language_box and output.language_boxes is not None:
            from unimed.losses.box import box_loss
            from unimed.models.heads.box import BoxPrediction

            second = box_loss(BoxPrediction(output.language_boxes), batch["boxes_xyxy"])
            loss = loss + self.language_box * sum(second.values())
        return loss

    def _published_losses(self, output, batch) -> torch.Tensor:
        from unimed.models.heads.box_coordinates import xyxy_to_cxcywh

        target = xyxy_to_cxcywh(batch["boxes_xyxy"])
        hypotheses = output.boxes.hypotheses
        if hypotheses is None:
            hypotheses = output.boxes.boxes_cxcywh[:, None].expand(-1, 3, -1)
        owner = _rows_of(batch, self.model.config.box_token_id)
        total = output.boxes.boxes_cxcywh.sum() * 0.0
        for row in owner.unique():
            mine = owner == row
            language = output.language_boxes[mine] if self.language_box and output.language_boxes is not None else None
            parts = box_published.image_losses(
                output.boxes.kind, list(hypotheses[mine].unbind(1)), target[mine], language
            )
            weights = {"box": 1.0, "extra": self.box_options.get("extra", 1.0), "language": self.language_box}
            total = total + sum(weights[name] * value for name, value in parts.items())
        return total

    def predict_samples(self, samples: Sequence[Sample], blank: bool = False) -> list[Prediction]:
        """Answers by the protocol of the task; free running never shows the model the answer."""
        if self.protocol == "free":
            return super().predict_samples(samples, blank)
        samples = [self.processor.write(sample) for sample in samples]
        images = [np.zeros_like(s.images[0]) if blank else s.images[0] for s in samples]
        questions = [s.conversation[0][1] for s in samples]
        return teacher_forced(self.model, images, questions, [s.conversation[1][1] for s in samples])

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction], train: Sequence[Sample] = ()) -> dict:
        """Phrases, boxes, uncertainty, beside the mean box of `train`; under disturbance too where the task says so."""
        result = self._benchmark().score(samples, predictions, compat=self.compat, train=train)
        if self.robustness is not None and samples and not self.training:
            result["tables"]["robustness"] = self.disturbed(samples)
        return result

    def _benchmark(self):
        """The declared benchmark of the task's protocol."""
        return benchmark(f"umedground/mrg_{self.protocol}")

    def validate(self, samples: Sequence[Sample], predictions=None) -> dict[str, float]:
        """The summary of the benchmark: nothing is disturbed while training."""
        predictions = self.predict_samples(samples) if predictions is None else predictions
        summary = self._benchmark().score(samples, predictions, compat=self.compat)["summary"]
        return {name: float(value) for name, value in summary.items() if isinstance(value, (int, float))}

    def disturbed(self, samples: Sequence[Sample]) -> list[dict]:
        """One row per kind and severity of disturbance: mIoU, AURC, ECE, and coverage with a calibration file."""
        rows = []
        chosen = {"kinds": None, "severities": (1, 3, 5)} | dict(self.robustness)
        for kind, severity in settings(chosen["kinds"], chosen["severities"]):
            worse = [_disturbed(sample, kind, severity, seed) for seed, sample in enumerate(samples)]
            predictions = self.predict_samples(worse)
            cases = []
            for sample, prediction in zip(worse, predictions, strict=True):
                for phrase, true, found in pair_phrases(sample, prediction):
                    cases += self._calibrated(box_cases(sample, phrase, true, found))
            rows.append({"kind": kind, "severity": severity, "protocol": self.protocol} | disturbed_scores(cases))
        return rows

    def _calibrated(self, rows: list[dict]) -> list[dict]:
        if self.calibration is None:
            return rows
        for row in rows:
            if row["predicted_box_xyxy_px"] is None:
                continue
            region = Region(
                row["target"], box_xyxy_px=tuple(row["predicted_box_xyxy_px"]), confidence=row.get("confidence"),
                box_std_px=tuple(row["box_std_px"]) if row.get("box_std_px") else None,
            )  # fmt: skip
            region = self.calibration.apply(region, image_size_hw=tuple(row["image_size_hw"]))
            row["confidence"] = region.confidence
            if region.box_outer_xyxy_px is not None:
                outer, true = region.box_outer_xyxy_px, row["true_box_xyxy_px"]
                inside = outer[0] <= true[0] and outer[1] <= true[1] and outer[2] >= true[2] and outer[3] >= true[3]
                row["inside_outer"] = float(inside)
        return rows


def _disturbed(sample: Sample, kind: str, severity: int, seed: int) -> Sample:
    """The sample with its image made worse and its boxes moved along; a box that left the image has no place."""
    worse = disturb(sample.images[0], kind, severity, seed=seed)
    regions = []
    for region in sample.regions:
        if region.box_xyxy_px is not None and worse.moves:
            box = worse.box(region.box_xyxy_px)
            region = replace(region, box_xyxy_px=box, presence=1.0 if box else 0.0)
        regions.append(region)
    return replace(sample, images=(worse.image,), regions=tuple(regions))


def _rows_of(batch, box_token_id: int) -> torch.Tensor:
    """[N], the row of the batch that each [BOX] of an answer stands in."""
    places = (batch["input_ids"] == box_token_id) & (batch["labels"] != -100)
    return torch.nonzero(places)[:, 0]
