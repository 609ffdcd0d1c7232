"""One mixture over all systems: what is missing is left out by name, what is there is balanced over tasks and sets."""

import numpy as np
import pytest
from data.tiny_sets import records

from unimed.data.mixture import DataError, balanced_weights
from unimed.data.readers.unified_mixture import RECORD_TASKS, SYSTEMS, mixture
from unimed.engine.stream import build_datasets
from unimed.registry import DATASETS, check
from unimed.structures import task_of


def test_every_entry_names_a_reader_its_task_and_what_it_needs():
    entries = mixture("data", hard={})
    assert len(entries) > 100 and len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        check(entry["dataset"], DATASETS)
        if entry["dataset"]["type"] == "HardPromptDataset":
            check(entry["dataset"]["dataset"], DATASETS)
        task_of(entry["task"])
        assert entry["needs"].startswith("data/")
    assert {entry["name"].split(" ")[0] for entry in entries} == set(SYSTEMS)
    with pytest.raises(ValueError, match="unimed"):
        mixture(systems=["unknown"])


def test_what_is_missing_is_left_out_by_name(tmp_path, capsys):
    records(tmp_path / "mine")
    config = dict(mixture=mixture(str(tmp_path), hard={}), balance=dict(task=2.0, dataset=2.0))
    datasets, names, weights, options = build_datasets(config, tell=True)
    said = capsys.readouterr().out
    assert names == [f"records mine {task}" for task in RECORD_TASKS] and options == {}
    assert sum(weights) == pytest.approx(1) and all(len(dataset) for dataset in datasets)
    assert "records mine referring" in said and "uni_med Slake-VQA: " in said and "is not there" in said
    assert said.count("is not there") == len(config["mixture"]) - len(names)
    with pytest.raises(DataError, match="no data set of the mixture is there"):
        build_datasets(dict(mixture=mixture(str(tmp_path / "nowhere"))))
    with pytest.raises(DataError, match="unknown key 'taks'"):
        build_datasets(config | dict(balance=dict(taks=2.0)))


def test_a_set_that_is_there_and_broken_is_no_missing_one(tmp_path):
    records(tmp_path / "mine")
    (tmp_path / "mine" / "records" / "train.jsonl").write_text("{no json")
    with pytest.raises(ValueError, match="train.jsonl"):
        build_datasets(dict(mixture=mixture(str(tmp_path))))


def test_temperatures_balance_tasks_and_sets():
    lengths, tasks = [900, 100, 10], ["a", "a", "b"]
    assert balanced_weights(lengths, tasks) == pytest.approx(np.array(lengths) / 1010)
    even = balanced_weights(lengths, tasks, float("inf"), float("inf"))
    assert even == pytest.approx([0.25, 0.25, 0.5])
    roots = balanced_weights(lengths, tasks, 2.0, 2.0)
    assert roots[2] / sum(roots[:2]) == pytest.approx((10 / 1000) ** 0.5) and roots[0] / roots[1] == pytest.approx(3)
    assert balanced_weights([5, 5], ["a", "a"], factors=[3, 1]) == pytest.approx([0.75, 0.25])
    with pytest.raises(DataError, match="at least 1"):
        balanced_weights(lengths, tasks, 0.5)
