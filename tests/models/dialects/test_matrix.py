"""Every registered data set trains a model of every registered dialect: samples are worded and become a batch."""

from dataclasses import replace

import pytest
import torch
from data.tiny_sets import build_all
from small_models import tiny_model

from unimed.data.canonical import POINTERS, answer_of
from unimed.data.collate.grounded import GroundedCollator
from unimed.data.mixture import seeded
from unimed.models.dialects import build_dialect
from unimed.registry import DATASETS, DIALECTS, _choices
from unimed.tasks.grounding import INPUTS, GroundingTask

DIALECT_NAMES = _choices(DIALECTS)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    built = {name: DATASETS.build(config) for name, config in build_all(tmp_path_factory.mktemp("sets")).items()}
    return {name: [dataset[index] for index in range(min(len(dataset), 9))] for name, dataset in built.items()}


@pytest.fixture(scope="module")
def task():
    return GroundingTask(tiny_model(box_head="point")).train()


def test_every_registered_data_set_is_here(sets):
    ours = {name for name in _choices(DATASETS) if DATASETS.get(name).__module__.startswith("unimed.")}
    assert {name.split(" ")[0] for name in sets} == ours


@pytest.mark.parametrize("name", DIALECT_NAMES)
def test_every_data_set_builds_a_batch(name, sets, task):
    task.processor.dialect = build_dialect(name)
    collate, losses = GroundedCollator(task.processor), 0
    for kind, samples in sets.items():
        with seeded(0):
            batch = collate(samples)
        assert len(batch["sample_ids"]) == len(samples), kind
        if losses < 3:
            with torch.no_grad():
                assert torch.isfinite(task(batch)["loss"]), kind
            losses += 1
    assert set(batch) >= set(INPUTS) - {"pixel_values", "image_grid_thw", "position_ids", "native"}


@pytest.mark.parametrize("name", DIALECT_NAMES)
def test_what_a_sample_points_at_survives_the_way_through_a_dialect(name, sets):
    dialect = build_dialect(name)
    for kind, samples in sets.items():
        for sample in samples:
            written = dialect.write(sample)
            assert dialect.write(written) is written, "written once"
            tokens = POINTERS.findall(answer_of(written))
            assert len(tokens) == len(written.written.pointed), (kind, answer_of(written))
            assert dialect.seg_token or "[SEG]" not in tokens
            assert dialect.box_token or "[BOX]" not in tokens
            text = " ".join(text for _, text in written.conversation)
            assert dialect.marks_phrases or "<p>" not in text
            if not dialect.shows_regions:
                assert not written.written.given and "region1" not in text, (kind, text)
            if not sample.images or dialect.boxes is None:
                continue
            size = dialect._size(sample)
            found = [box for _, _, boxes in dialect.read_boxes(answer_of(written), size) for box in boxes]
            canonical = POINTERS.findall(answer_of(dialect.word(replace(sample, intent=None))))
            there = [r for r in sample.regions if r.mask is not None or r.box_xyxy_px is not None]
            if canonical and len(there) == len(canonical):
                assert len(tokens) + len(found) == len(canonical), (kind, answer_of(written))
