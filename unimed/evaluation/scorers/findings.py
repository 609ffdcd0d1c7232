"""Free-text grounding of findings in volumes, by the protocol of ReXGroundingCT (see `unimed.metrics.findings`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.evaluation.cases import sample_row
from unimed.evaluation.matching import match_regions
from unimed.evaluation.rows import question_of
from unimed.io.result import Prediction
from unimed.metrics.findings import finding_scores, pool_findings
from unimed.metrics.statistics import bootstrap
from unimed.structures import Sample

FIGURES = ("global_dice", "hit_rate", "instance_precision", "instance_recall", "instance_f1")


def score_findings(
    samples: Sequence[Sample], predictions: Sequence[Prediction], *, resamples: int = 500, seed: int = 0
) -> dict:
    """Dice, hit rate and instance F1 over findings; intervals resample patients.

    A finding is a true region with a mask; where a question asks for one, all that is shown belongs to it, else regions
    are matched by name and place. What nothing was shown for counts with a Dice of 0.

    Returns:
        {"summary", "tables": {"findings": one row}, "cases": one row per finding}.

    Raises:
        ValueError: other numbers of samples and predictions, no finding at all, or masks of another shape (the sample
            is named).
    """
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        true = [region for region in sample.regions if region.mask is not None and region.mask.any()]
        shown = [region for region in prediction.regions if region.mask is not None]
        if len(true) == 1:
            pairs = [(true[0], shown)]
        else:
            matched = match_regions(true, shown, question_of(sample))
            pairs = [(p.true, [p.predicted] if p.predicted else []) for p in matched if p.true is not None]
        for region, found in pairs:
            try:
                union = np.zeros_like(region.mask)
                for one in found:
                    union |= one.mask
                scores = finding_scores(union, region.mask)
            except ValueError as error:
                raise ValueError(f"{sample.sample_id}: {error}") from error
            rows.append(sample_row(sample, "instances", region.phrase, **scores, answered=bool(found)))
    if not rows:
        raise ValueError("no sample has a finding with a mask")
    pooled, owners = pool_findings(rows), [row["group"] for row in rows]
    line: dict = {"findings": len(rows), "patients": len(set(owners))}
    for name in FIGURES:
        line[name] = bootstrap(
            lambda index, name=name: pool_findings([rows[i] for i in index])[name], len(rows), groups=owners,
            resamples=resamples, seed=seed,
        )  # fmt: skip
    return {"summary": pooled, "tables": {"findings": [line]}, "cases": rows}
