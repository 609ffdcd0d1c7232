"""Calibration of confidence and box bands: fitted on cases the model was not trained on, applied to what it returns.

rows = read_cases("val/cases.jsonl")
calibration = Calibration.fit(rows, alpha=0.1, by=("size",))
calibration.save("calibration.json")
region = Calibration.load("calibration.json").apply(region)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unimed.files import read_json, write_report
from unimed.metrics import selective
from unimed.metrics.boxes import paired_iou
from unimed.metrics.conformal import ConformalBoxes
from unimed.metrics.conformal_regions import ConformalMasks, ConformalPresence, grown
from unimed.metrics.reliability import ProbabilityMap, brier, d_ece, ece, laece, sigma_coverage, sigma_scale
from unimed.metrics.statistics import bootstrap
from unimed.structures import Region

FORMAT = "unimed-calibration"
VERSION = 1
OUTCOMES = ("hit_at_50", "iou")


class CalibrationError(ValueError):
    """A calibration file or a case row that cannot be used; file or row and field are named."""


@dataclass(frozen=True)
class Cases:
    """Case rows as arrays: one predicted box against one true box each, and what the model said of it.

    predicted, truth: [N, 4] xyxy in pixels. sigma [N, 4] in pixels and confidence [N] are None where no row has them.
    """

    predicted: np.ndarray
    truth: np.ndarray
    sigma: np.ndarray | None
    confidence: np.ndarray | None
    classes: list[str]
    groups: list[str]
    places: np.ndarray | None
    skipped: int

    @classmethod
    def read(cls, rows: Sequence[Mapping]) -> Cases:
        """Take the fields of per-case rows; rows without a predicted or true box are counted in `skipped`.

        Fields: predicted_box_xyxy_px, true_box_xyxy_px; optional box_std_px, confidence (all rows or none), target,
        group (patient), image_size_hw.

        Raises:
            CalibrationError: no usable row, a field in some rows only, or a broken value (row and field are named).
        """
        kept = [
            (number, row)
            for number, row in enumerate(rows)
            if row.get("predicted_box_xyxy_px") is not None and row.get("true_box_xyxy_px") is not None
        ]
        if not kept:
            raise CalibrationError(
                f"none of {len(rows)} rows has predicted_box_xyxy_px and true_box_xyxy_px:"
                " write them with the evaluation of a task that has boxes"
            )
        predicted = _column(kept, "predicted_box_xyxy_px", 4)
        truth = _column(kept, "true_box_xyxy_px", 4)
        for name, boxes in (("predicted_box_xyxy_px", predicted), ("true_box_xyxy_px", truth)):
            flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
            if flat.any():
                raise CalibrationError(
                    f"row {kept[int(flat.argmax())][0]}: {name} {boxes[flat][0].tolist()} has no area"
                )
        sigma = _column(kept, "box_std_px", 4)
        if sigma is not None and not (sigma > 0).all():
            raise CalibrationError(f"row {kept[int((sigma <= 0).any(1).argmax())][0]}: box_std_px must be positive")
        confidence = _column(kept, "confidence", None)
        if confidence is not None and not ((confidence >= 0) & (confidence <= 1)).all():
            raise CalibrationError("confidence must lie in [0, 1]")
        size = _column(kept, "image_size_hw", 2)
        places = None
        if size is not None:
            center, side = (predicted[:, :2] + predicted[:, 2:]) / 2, predicted[:, 2:] - predicted[:, :2]
            places = np.clip(np.concatenate([center, side], axis=1) / size[:, [1, 0, 1, 0]], 0, 1)
        classes = [str(row.get("target", "")) for _, row in kept]
        groups = [str(row.get("group") or row.get("case") or row.get("case_id") or number) for number, row in kept]
        return cls(predicted, truth, sigma, confidence, classes, groups, places, len(rows) - len(kept))

    @property
    def iou(self) -> np.ndarray:
        return paired_iou(self.predicted, self.truth)

    @property
    def error(self) -> np.ndarray:
        return self.predicted - self.truth


def _column(kept, name, width):
    have = [row.get(name) is not None for _, row in kept]
    if not any(have):
        return None
    if not all(have):
        raise CalibrationError(f"row {kept[have.index(False)][0]}: {name} is missing, but other rows have it")
    try:
        values = np.array([row[name] for _, row in kept], dtype=np.float64)
    except (TypeError, ValueError):
        raise CalibrationError(f"{name} must be numbers of one shape in every row") from None
    if values.shape != ((len(kept),) if width is None else (len(kept), width)):
        raise CalibrationError(f"{name} must be {width or 'one'} number(s) per row, got shape {values.shape}")
    bad = ~np.isfinite(values).reshape(len(kept), -1).all(1)
    if bad.any():
        raise CalibrationError(f"row {kept[int(bad.argmax())][0]}: {name} holds NaN or Inf")
    return values


def box_uncertainty(sigma: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """One number per box: mean spread of its sides over the root of its area, [N, 4] and [N, 4] to [N]; 0 is sure."""
    side = np.sqrt(np.clip(boxes[:, 2:] - boxes[:, :2], 1e-9, None).prod(1))
    return sigma.mean(1) / side


def _signals(names, confidence, sigma, boxes):
    """Features of the confidence map: the bare confidence, or logit and logarithms when there are several."""
    if names == ("confidence",):
        return confidence
    columns = {
        "confidence": lambda: np.log(np.clip(confidence, 1e-6, 1 - 1e-6) / np.clip(1 - confidence, 1e-6, 1)),
        "uncertainty": lambda: np.log(np.clip(box_uncertainty(sigma, boxes), 1e-9, None)),
        "area": lambda: np.log(np.clip(boxes[:, 2:] - boxes[:, :2], 1e-9, None).prod(1)),
    }
    return np.stack([columns[name]() for name in names], axis=1)


@dataclass(frozen=True)
class Calibration:
    """What turns a model's own numbers into numbers that can be relied on.

    boxes: margins of outer and inner boxes. confidence: map from `signals` to P(IoU >= 0.5), or to the expected IoU
    where `outcome` is "iou". sigma: factor per box side. presence: threshold from which on masks are shown. masks:
    margin by which they grow to hold the truth; mask_confidence: as `confidence`, for masks. provenance: what it was
    learned from.
    """

    boxes: ConformalBoxes | None = None
    confidence: ProbabilityMap | None = None
    signals: tuple[str, ...] = ()
    outcome: str = "hit_at_50"
    sigma: tuple[float, ...] | None = None
    provenance: dict = field(default_factory=dict)
    presence: ConformalPresence | None = None
    masks: ConformalMasks | None = None
    mask_confidence: ProbabilityMap | None = None

    @classmethod
    def fit(
        cls,
        rows: Sequence[Mapping],
        *,
        alpha: float = 0.1,
        scale: str = "pixel",
        by: Sequence[str] = (),
        kind: str = "platt",
        outcome: str = "hit_at_50",
        provenance: Mapping | None = None,
    ) -> Calibration:
        """Learn everything the rows allow: boxes (fields in `Cases.read`), presence and masks (`region_cases`).

        Args:
            alpha: allowed fraction of true boxes outside the outer box, of false masks, and of masks that do not cover.
            scale, by: see `conformal.ConformalBoxes`.
            kind: see `reliability.MAPS`. Without confidence in the rows "platt" learns from spread and area.
            outcome: what the confidence is to mean: "hit_at_50" P(IoU >= 0.5), or "iou" the IoU itself.
        """
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {OUTCOMES}, got {outcome!r}")
        absent, covering, stated = region_cases(rows)
        parts: dict = {"provenance": {"absent_prompts": len(absent), "masks": len(covering)} | dict(provenance or {})}
        if absent:
            values, groups = [row["presence"] for row in absent], [row["group"] for row in absent]
            parts["presence"] = ConformalPresence.fit(values, alpha, groups, [row["task"] for row in absent])
        if covering:
            distances = [row["cover_95_px"] for row in covering]
            parts["masks"] = ConformalMasks.fit(distances, alpha, [row["group"] for row in covering])
        if stated:
            hit = [_mask_outcome(row, outcome) for row in stated]
            parts["mask_confidence"] = ProbabilityMap.fit(kind, np.array([row["confidence"] for row in stated]), hit)
        if (absent or covering) and not any(row.get("true_box_xyxy_px") for row in rows):
            return cls(outcome=outcome, **parts)
        cases = Cases.read(rows)
        factors = None if cases.sigma is None else sigma_scale(cases.error, cases.sigma)
        spread = None if factors is None else cases.sigma * np.array(factors)
        boxes = ConformalBoxes.fit(
            cases.predicted,
            cases.truth,
            alpha=alpha,
            scale=scale,
            sigma=spread,
            classes=cases.classes,
            groups=cases.groups,
            by=by,
        )
        names = () if cases.confidence is None else ("confidence",)
        if kind == "platt" and cases.sigma is not None:
            names += ("uncertainty", "area")
        target = (cases.iou >= 0.5).astype(float) if outcome == "hit_at_50" else cases.iou
        fitted = (
            ProbabilityMap.fit(kind, _signals(names, cases.confidence, spread, cases.predicted), target)
            if names
            else None
        )
        about = {"boxes": len(cases.truth), "patients": len(set(cases.groups)), "rows_without_boxes": cases.skipped}
        parts["provenance"] = about | parts["provenance"]
        return cls(boxes, fitted, names, outcome, factors, **parts)

    def apply_arrays(self, predicted, *, sigma=None, confidence=None, classes=None) -> dict[str, np.ndarray | None]:
        """Calibrated confidence [N], sigma [N, 4], outer and inner boxes [N, 4] of boxes [N, 4]; None if unlearned.

        Raises:
            CalibrationError: the calibration needs spread or confidence and the model gave none.
        """
        if self.sigma is not None and sigma is not None:
            sigma = np.asarray(sigma, dtype=np.float64) * np.array(self.sigma)
        needs_sigma = "uncertainty" in self.signals or (self.boxes is not None and self.boxes.scale == "sigma")
        if needs_sigma and sigma is None:
            raise CalibrationError("this calibration was learned with box_std_px, and the region has none")
        if "confidence" in self.signals and confidence is None:
            raise CalibrationError("this calibration was learned with confidence, and the region has none")
        calibrated = None
        if self.confidence is not None:
            calibrated = self.confidence(_signals(self.signals, confidence, sigma, predicted))
        outer, inner = self.boxes.boxes(predicted, sigma=sigma, classes=classes) if self.boxes else (None, None)
        return {"confidence": calibrated, "sigma": sigma, "outer": outer, "inner": inner}

    def apply(
        self, region: Region, *, label: str | None = None, image_size_hw: tuple[int, int] | None = None
    ) -> Region:
        """The region with calibrated confidence, box_std_px, outer and inner box; one without a box stays as it is.

        A region with a mask keeps its box, which is that of the mask, and gets the confidence learned for masks.

        Args:
            label: its class where margins were learned by class; by default the phrase.
            image_size_hw: clips the outer box to the image, which cannot lose any of the true box.

        Raises:
            CalibrationError: as in `apply_arrays`, or the region has an outer box already: only the model's own
                numbers can be calibrated, and only once.
        """
        if region.mask is not None:
            if self.mask_confidence is None or region.confidence is None:
                return region
            return replace(region, confidence=float(self.mask_confidence(np.array([region.confidence]))[0]))
        if region.box_xyxy_px is None or self.boxes is None:
            return region
        if region.box_outer_xyxy_px is not None:
            raise CalibrationError(
                f"region {region.phrase!r} is calibrated already; apply this to the model's own output"
            )
        result = self.apply_arrays(
            np.array([region.box_xyxy_px], dtype=np.float64),
            sigma=None if region.box_std_px is None else np.array([region.box_std_px], dtype=np.float64),
            confidence=None if region.confidence is None else np.array([region.confidence]),
            classes=[region.phrase if label is None else label],
        )
        changes: dict = {}
        if result["confidence"] is not None:
            changes["confidence"] = float(np.clip(result["confidence"][0], 0, 1))
        if result["sigma"] is not None:
            changes["box_std_px"] = tuple(float(v) for v in result["sigma"][0])
        if result["outer"] is not None and result["inner"] is not None:
            outer = result["outer"][0]
            if image_size_hw is not None:
                outer = np.clip(outer, 0, [image_size_hw[1], image_size_hw[0]] * 2)
            changes["box_outer_xyxy_px"] = tuple(float(v) for v in outer)
            inner = result["inner"][0]
            changes["box_inner_xyxy_px"] = None if np.isnan(inner).any() else tuple(float(v) for v in inner)
        return replace(region, **changes)

    def outer_mask(self, region: Region) -> np.ndarray | None:
        """The mask of a region grown until it holds the truth as often as promised; None without mask or margin."""
        return None if self.masks is None or region.mask is None else grown(region.mask, self.masks.margin_px)

    def save(self, path: str | Path) -> Path:
        """Write the calibration as JSON, whole or not at all."""
        return write_report(path, {"format": FORMAT, "version": VERSION} | _finite(asdict(self)))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a calibration file.

        Raises:
            CalibrationError: not JSON, another format or version, or fields that do not fit.
        """
        content = read_json(path, error=CalibrationError)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise CalibrationError(f"{path}: not a calibration file; make one with tools/calibrate.py")
        if (version := content.pop("version", None)) != VERSION:
            raise CalibrationError(f"{path}: version {version}, this program reads version {VERSION}")
        try:
            boxes, confidence, sigma = (content.pop(name) for name in ("boxes", "confidence", "sigma"))
            if boxes is not None:
                for side in ("outer", "inner"):
                    boxes[side] = {k: math.inf if v is None else float(v) for k, v in boxes[side].items()}
                boxes["by"], boxes["size_edges_px"] = tuple(boxes["by"]), tuple(boxes["size_edges_px"])
                boxes = ConformalBoxes(**boxes)
            confidence = None if confidence is None else ProbabilityMap(**confidence)
            for name, cls_of in _PARTS.items():  # files from before these were learned have none
                content[name] = None if content.get(name) is None else cls_of(**content[name])
            content["signals"] = tuple(content["signals"])
            return cls(boxes=boxes, confidence=confidence, sigma=None if sigma is None else tuple(sigma), **content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CalibrationError(f"{path}: field missing, unknown or of the wrong kind ({error})") from None

    def evaluate(self, rows: Sequence[Mapping], *, resamples: int = 500, seed: int = 0) -> dict:
        """Measure on rows that were not used to learn it, before and after where both exist.

        Returns:
            coverage: rows of `ConformalBoxes.coverage`. reliability: one row "as the model said" and one
            "calibrated" with ece, la_ece, d_ece (with image sizes) and brier as `Interval`. sigma: shares within z
            sigma, before and after. selective: numbers of `selective.selective_scores` with risk 1 - IoU. presence:
            rates of false and missed masks at the usual and the conformal threshold. masks: fraction covered.
        """
        further = self._evaluate_regions(rows, resamples, seed)
        if self.boxes is None and self.confidence is None:
            if not further:
                raise CalibrationError(f"none of {len(rows)} rows has presence or masks that this calibration is about")
            return further
        cases = Cases.read(rows)
        result = self.apply_arrays(
            cases.predicted, sigma=cases.sigma, confidence=cases.confidence, classes=cases.classes
        )
        report: dict = {"boxes": len(cases.truth), "patients": len(set(cases.groups))}
        if self.boxes is not None:
            report["coverage"] = self.boxes.coverage(
                cases.predicted, cases.truth, sigma=result["sigma"], classes=cases.classes
            )
        report["reliability"] = [
            {"confidence": name} | _reliability(values, cases, resamples, seed)
            for name, values in (("as the model said", cases.confidence), ("calibrated", result["confidence"]))
            if values is not None
        ]
        if cases.sigma is not None:
            report["sigma"] = [
                {"spread": name} | sigma_coverage(cases.error, values)
                for name, values in (("as the model said", cases.sigma), ("calibrated", result["sigma"]))
                if values is not None
            ]
        if (uncertainty := uncertainty_of(result, cases)) is not None:
            report["selective"] = selective.selective_scores(
                uncertainty, 1 - cases.iou, groups=cases.groups, resamples=resamples, seed=seed
            )
        return report | further

    def _evaluate_regions(self, rows: Sequence[Mapping], resamples: int, seed: int) -> dict:
        report: dict = {}
        asked = [row for row in rows if row.get("kind") == "presence" and row.get("presence") is not None]
        options: dict[str, Any] = {"resamples": resamples, "seed": seed}
        if self.presence is not None and asked:
            stated_presence, present, patients, kinds = (
                [row[name] for row in asked] for name in ("presence", "present", "group", "task")
            )
            drawn = [row["predicted_voxels"] > 0 or row["presence"] < 0.5 for row in asked]
            report["presence"] = self.presence.rates(stated_presence, present, patients, kinds, drawn, **options)
        _, covering, stated = region_cases(rows)
        if self.masks is not None and covering:
            owners = [row["group"] for row in covering]
            held = self.masks.coverage([row["cover_95_px"] for row in covering], owners, **options)
            line = {"masks": len(covering), "patients": len(set(owners)), "margin_px": self.masks.margin_px}
            report["masks"] = [line | {"covered": held}]
        if self.mask_confidence is not None and stated:
            stated_values = np.array([row["confidence"] for row in stated])
            hit, owners = (
                np.array([_mask_outcome(row, "hit_at_50") for row in stated]),
                [row["group"] for row in stated],
            )
            report["mask_reliability"] = [
                {"confidence": name} | {
                    measure: bootstrap(
                        partial(_at, one, values, hit), len(hit), groups=owners, center=True,
                        **options,
                    )
                    for measure, one in (("ece", ece), ("brier", brier))
                }
                for name, values in (
                    ("as the model said", stated_values),
                    ("calibrated", self.mask_confidence(stated_values)),
                )
            ]  # fmt: skip
        return report


_PARTS = {"presence": ConformalPresence, "masks": ConformalMasks, "mask_confidence": ProbabilityMap}


def region_cases(rows: Sequence[Mapping]) -> tuple[list, list, list]:
    """Rows of absent prompts with a presence, of masks with the distance to cover, and of masks with a confidence."""
    absent = [
        row
        for row in rows
        if row.get("kind") == "presence" and row.get("presence") is not None and not row.get("present", True)
    ]
    masks = [row for row in rows if row.get("kind") == "mask"]
    covering = [row for row in masks if row.get("cover_95_px") is not None]
    return absent, covering, [row for row in masks if row.get("confidence") is not None and row.get("iou") is not None]


def _mask_outcome(row: Mapping, outcome: str) -> float:
    return float(row["iou"]) if outcome == "iou" else float(row["iou"] >= 0.5)


def uncertainty_of(result: Mapping, cases: Cases) -> np.ndarray | None:
    """What cases are sorted by: 1 - calibrated confidence, else relative spread; None when the model said nothing."""
    if result["confidence"] is not None:
        return 1 - result["confidence"]
    return None if cases.sigma is None else box_uncertainty(cases.sigma, cases.predicted)


def _at(measure, values, outcome, index) -> float:
    return measure(values[index], outcome[index])


def _reliability(confidence, cases, resamples, seed):
    hit = (cases.iou >= 0.5).astype(float)
    measures = {
        "ece": lambda i: ece(confidence[i], hit[i]),
        "la_ece": lambda i: laece(confidence[i], cases.iou[i]),
        "brier": lambda i: brier(confidence[i], hit[i]),
    }
    if cases.places is not None:
        measures["d_ece"] = lambda i: d_ece(confidence[i], hit[i], cases.places[i])
    options = {"groups": cases.groups, "resamples": resamples, "seed": seed, "center": True}
    return {name: bootstrap(measure, len(hit), **options) for name, measure in measures.items()}


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
