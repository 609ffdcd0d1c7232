"""Every registered data set keeps the contract of `unimed.data.contracts`; each has a few samples in `tiny_sets`."""

import pickle

import numpy as np
import pytest
from data.tiny_sets import build_all

from unimed.data.checks import check_datasets
from unimed.data.contracts import SampleDataset, contract_problems
from unimed.data.mixture import Key, KeyedDatasets
from unimed.registry import DATASETS, registered


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return {name: DATASETS.build(config) for name, config in build_all(tmp_path_factory.mktemp("every")).items()}


def ours():
    return {name for name, one in registered(DATASETS).items() if one.__module__.startswith("unimed.")}


def test_every_registered_data_set_has_an_example(sets):
    assert ours() <= {name.split(" ")[0] for name in sets}, "add it to tests/data/tiny_sets.py"


def plain(sample):
    """All that a sample holds, as something that compares."""
    regions = [
        (r.phrase, r.box_xyxy_px, r.presence, r.phrase_span, None if r.mask is None else r.mask.tobytes())
        for r in sample.regions
    ]
    images = [(image.shape, image.dtype.str, image.tobytes()) for image in sample.images]
    labels = {k: v for k, v in sample.labels.items() if not isinstance(v, np.ndarray)}
    return sample.sample_id, images, sample.conversation, regions, repr(labels), sample.intent, sample.patient_id


def read(dataset, name, epoch, seed=3):
    keyed = KeyedDatasets([dataset], [name], seed=seed, attempts=1)
    return [plain(keyed[Key(0, index, epoch, index)][0]) for index in range(min(len(dataset), 4))]


def test_length_and_items(sets):
    for name, dataset in sets.items():
        assert isinstance(dataset, SampleDataset) and len(dataset) > 0, name
        for index in range(min(len(dataset), 9)):
            assert contract_problems(dataset[index]) == [], (name, index)
        if hasattr(dataset, "length_of"):
            assert dataset.length_of(0) > 0, name
        if hasattr(dataset, "alternative"):
            assert all(0 <= dataset.alternative(0, attempt) < len(dataset) for attempt in range(1, 4)), name


def test_two_passes_are_equal_under_a_seed(sets):
    for name, dataset in sets.items():
        first = read(dataset, name, epoch=0)
        read(dataset, name, epoch=1)  # what was read in between does not matter
        assert read(dataset, name, epoch=0) == first, name


def test_workers_read_the_same(sets):
    for name, dataset in sets.items():
        assert read(pickle.loads(pickle.dumps(dataset)), name, epoch=0) == read(dataset, name, epoch=0), name


def test_a_check_finds_nothing_wrong(sets):
    for name, dataset in sets.items():
        report = check_datasets({"train": dataset})
        assert report.ok, (name, report.table())


def test_a_check_names_what_is_wrong():
    from dataclasses import replace

    from unimed.geometry import Geometry
    from unimed.structures import Region, Sample

    good = Sample((np.zeros((4, 5), np.uint8),), Geometry.pixels(), "a", regions=(Region("x", presence=0.0),))
    wrong = {
        "not a Sample": 3,
        "no sample_id": replace(good, sample_id=""),
        "no array": replace(good, images=(np.zeros(4),)),
        "not known": replace(good, labels={"task": "dance"}),
        "no turn": replace(good, conversation=(("robot", "hi"),)),
        "its image": replace(good, regions=(Region("x", mask=np.ones((2, 2), bool)),)),
        "to learn from": replace(good, regions=()),
    }
    for words, sample in wrong.items():
        assert any(words in one for one in contract_problems(sample)), words
    patient = replace(good, patient_id="p")
    report = check_datasets({"train": [patient, *wrong.values()], "test": [replace(patient, sample_id="b")]})
    kinds = [kind for _, kind, _ in report.problems]
    assert kinds.count("unusable") == len(wrong) and {"patient leakage", "duplicate"} <= set(kinds)
