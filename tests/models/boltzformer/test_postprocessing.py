"""Logits to labels: the recorded choices, and the recorded numbers but for rounding."""

import json

import numpy as np
import pytest
import torch
from closeness import assert_close
from golden_files import SMALL

from unimed.models.boltzformer.postprocessing import (
    distinct,
    merge,
    present_probability,
    there_by_existence,
    upsample,
)

RECORDED = np.load(SMALL / "biomedparse" / "postprocess.npz")
FACTS = json.loads((SMALL / "biomedparse" / "processing.json").read_text())
LOGITS, EXISTENCE = (torch.from_numpy(RECORDED[f"nms.{name}"]) for name in ("logits", "existence_logits"))


def assert_recorded(ours, name):
    """What is left out is zero in both; a sigmoid rounds otherwise on other processors."""
    assert np.array_equal(ours == 0, RECORDED[name] == 0)
    assert_close(ours, RECORDED[name], name)


def every_slice(logits, existence, **options):
    slices = [present_probability(logits[:, z], existence[:, z].sigmoid(), **options) for z in range(logits.shape[1])]
    return torch.stack(slices, 1).numpy()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nms.postprocess", {}),
        ("nms.slice_nms_iou0.3_score0.25", dict(iou=0.3, threshold=0.25)),
        ("threshold0.7.postprocess", dict(threshold=0.7)),
        ("nonms.postprocess", dict(overlap="argmax")),
    ],
)
def test_probabilities(name, options):
    assert_recorded(every_slice(LOGITS, EXISTENCE, **options), name)


def test_one_prompt_and_the_order_of_what_is_kept():
    assert_recorded(every_slice(LOGITS[:1], EXISTENCE[:1]), "single.postprocess")
    kept = [distinct(LOGITS[:, z].sigmoid(), EXISTENCE[:, z].sigmoid()) for z in range(4)]
    assert kept == FACTS["nms_keep_per_slice"]


@pytest.mark.parametrize("ids", ["ids_identity", "ids_sparse", "ids_shift"])
def test_merging(ids):
    merged = merge(torch.from_numpy(RECORDED["nms.postprocess"]), FACTS[f"merge.{ids}"])
    assert np.array_equal(merged.numpy(), RECORDED[f"merge.{ids}"])


def test_ties_and_enlarging():
    assert np.array_equal(merge(torch.from_numpy(RECORDED["merge_tie.probs"]), [1, 2, 3]), RECORDED["merge_tie.out"])
    enlarged = upsample(torch.from_numpy(RECORDED["upsample.in"]), (37, 40))
    assert_close(enlarged, RECORDED["upsample.out"], "enlarged")


def test_unknown_rule():
    with pytest.raises(ValueError, match="unknown overlap"):
        present_probability(LOGITS[:, 0], EXISTENCE[:, 0], overlap="best")


@pytest.mark.parametrize("overlap", ["nms", "argmax", "keep"])
@pytest.mark.parametrize("count", [1, 4])
def test_prompts_of_too_little_existence_take_no_part(overlap, count):
    for z in range(LOGITS.shape[1]):
        logits, existence = LOGITS[:count, z], EXISTENCE[:count, z].sigmoid()
        threshold = float(existence[0])  # one of them lies at the threshold
        every = present_probability(logits, existence, threshold=threshold, overlap=overlap)
        rows = there_by_existence(existence, threshold=threshold, overlap=overlap)
        part = torch.zeros_like(every)
        part[rows] = present_probability(logits[rows], existence[rows], threshold=-1.0, overlap=overlap)
        assert torch.equal(part, every)
