"""Pure functions on arrays and strings, without torch: metrics, intervals, calibration. Names say the aggregation.

The common ones are here by name (`unimed.metrics.dice(prediction, truth)`); all that are registered, with their range,
direction and aggregation, are in `unimed.registry.METRICS` (`unimed.metrics.metrics_of("mask")`).
"""

from unimed.metrics.boxes import box_giou, box_iou, score_phrase
from unimed.metrics.classification import accuracy, auroc, balanced_accuracy, macro_f1
from unimed.metrics.instances import instance_scores
from unimed.metrics.masks import dice, iou
from unimed.metrics.matching import assign
from unimed.metrics.presence import presence_scores
from unimed.metrics.registered import Metric, metric, metrics_of
from unimed.metrics.reliability import brier, ece
from unimed.metrics.selective import augrc, aurc
from unimed.metrics.statistics import Interval, bootstrap, bootstrap_mean
from unimed.metrics.surfaces import hausdorff, mean_surface_distances, nsd
from unimed.metrics.text import bleu, captions, cider_d, exact_match, meteor_exact, normal_form, rouge_l, token_f1

__all__ = [
    "Interval", "Metric", "accuracy", "assign", "augrc", "aurc", "auroc", "balanced_accuracy", "bleu", "bootstrap",
    "bootstrap_mean", "box_giou", "box_iou", "brier", "captions", "cider_d", "dice", "ece", "exact_match", "hausdorff",
    "instance_scores", "iou", "macro_f1", "mean_surface_distances", "meteor_exact", "metric", "metrics_of",
    "normal_form", "nsd", "presence_scores", "rouge_l", "score_phrase", "token_f1",
]  # fmt: skip
