"""Grids: what is planned, one that is run, resumed and fails in part, and how its runs are compared."""

import json
import shutil
from pathlib import Path

import pytest
from data.tiny_sets import records

from unimed.commands.grid import grid
from unimed.engine.config import ConfigError
from unimed.engine.grid import compare, plan
from unimed.evaluation.tables import write_cases

TINY = Path(__file__).parents[2] / "configs" / "unified" / "_tiny.py"


def test_every_combination_has_a_folder_of_its_own(tmp_path):
    over = {"connector": ["linear", "experts"], "decoder": ["light", "sam"], "heads": ["none", "point", "mhp"]}
    runs = plan(TINY, over, tmp_path, seeds=(0, 1))
    assert len(runs) == 24 == len({run.folder for run in runs}) and len({run.fingerprint for run in runs}) == 24
    first = runs[0]
    assert first.name == "connector=linear decoder=light heads=none" and first.options["seed"] == 0
    assert first.options["task.model.connector"]["projector_type"] == "linear"
    assert first.options["task.model.mask_config"]["model_type"] == "unimed_light"
    assert first.options["task.model.box_head"] is None
    rates = plan(TINY, {"optimizer.lr": ["1e-3", "1e-4"]}, tmp_path)
    assert [run.options["optimizer.lr"] for run in rates] == [1e-3, 1e-4]
    for wrong, said in (({"decoder": ["lihgt"]}, "did you mean 'light'"), ({"conector": ["x"]}, "'connector'")):
        with pytest.raises(ConfigError, match=said):
            plan(TINY, wrong, tmp_path)


def test_a_grid_runs_resumes_and_names_what_failed(tmp_path, monkeypatch, capsys):
    own = records(tmp_path / "own")
    shutil.copy(own / "records" / "train.jsonl", own / "records" / "test.jsonl")
    config = tmp_path / "small.py"
    config.write_text(
        f"""
task = dict(type="GroundingTask", max_new_tokens=3, honesty_samples=0, model=dict(
    type="SmallGroundedMLLM", texts="{own}/records/train.jsonl", vocabulary=300, hidden_dim=32, layers=1, heads=2,
    vision_grid=2, mask_config=dict(model_type="unimed_light", image_size=32, width=16)))
train_data = dict(type="RecordDataset", path="{own}", tasks=["referring", "box"])
test_data = dict(type="RecordDataset", path="{own}", split="test", tasks=["referring", "box"])
collate = dict(type="GroundedCollator")
batch_size = 2
max_steps = 1
device = "cpu"
"""
    )
    line = [str(config), "--over", "heads=point,nonsense", "--out", str(tmp_path / "grid"), "--resamples", "20"]
    assert grid(line) == 2
    said = capsys.readouterr().out
    assert "1 of 2 runs finished; 1 of 1 saved, opened and predicted equal" in said
    assert "nonsense" in (tmp_path / "grid" / "grid.md").read_text() and "box head" in said
    (row,) = [json.loads(one) for one in (tmp_path / "grid" / "grid.jsonl").read_text().splitlines()]
    assert row["parameters"] > 1000 and row["memory_gb"] > 0 and row["cpu_seconds_train"] > 0 and row["steps"] == 1
    stamp = (tmp_path / "grid" / "point" / "seed_0" / "result.json").stat().st_mtime_ns
    assert grid([*line[:1], "--over", "heads=point", *line[3:]]) == 0
    assert "finished before" in capsys.readouterr().out
    assert (tmp_path / "grid" / "point" / "seed_0" / "result.json").stat().st_mtime_ns == stamp


def result(folder, name, seed, shift):
    rows = [
        dict(case=f"c{i}", group=f"g{i}", dataset="", modality="", task="referring", target="x", kind="mask",
             dice=min(1.0, 0.3 + 0.05 * i + shift + 0.01 * seed))
        for i in range(8)
    ]  # fmt: skip
    write_cases(folder / "test" / "scores.jsonl", rows)
    cost = dict(parameters=10, trainable=10, seconds_train=1.0, seconds_test=2.0, memory_gb=0.5, round_trip=True)
    return dict(run=name, values={"heads": name}, seed=seed, folder=folder, **cost)


def test_runs_are_compared_over_patients_and_seeds(tmp_path):
    shifts = {"good": 0.2, "bad": 0.0, "same": 0.0}
    results = [
        result(tmp_path / name / str(seed), name, seed, shift) for name, shift in shifts.items() for seed in (0, 1)
    ]
    table, against = compare(results, "dice", "mask", resamples=50)
    assert [line["heads"] for line in table][0] == "good" and table[0]["between_seeds"] == "0.675 to 0.685"
    assert len(against) == 2 and all(line["p_holm"] < 0.05 for line in against)
    assert table[0]["dice"].low < table[0]["dice"].value < table[0]["dice"].high
