"""Every declared benchmark names things that exist, and scores through its declaration."""

import importlib
import inspect

import numpy as np
import pytest

import unimed
from unimed.evaluation.benchmarks import benchmark, declare
from unimed.evaluation.benchmarks.declaring import benchmarks, resolve
from unimed.geometry import Geometry
from unimed.registry import BENCHMARKS, DATASETS, METRICS, RegistryError, look_up
from unimed.structures import Region, Sample

ALL = benchmarks()


@pytest.mark.parametrize("name", ALL)
def test_a_declaration_holds_what_it_promises(name):
    one = ALL[name]
    assert one.name == name and one.task and one.metrics and one.split
    read = resolve(one.reader) if ":" in one.reader else look_up(one.reader, DATASETS)
    takes = inspect.signature(read).parameters
    flexible = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    assert flexible or set(one.reader_options) <= set(takes), f"{one.reader} takes {list(takes)}"
    assert set(one.options) <= set(inspect.signature(resolve(one.scorer)).parameters)
    assert all(look_up(metric, METRICS).name == metric for metric in one.metrics)
    assert one.questions in ("data", "labels") or importlib.import_module(one.questions)


def test_what_the_published_systems_are_scored_by_is_declared():
    systems = {name.split("/")[0]: 0 for name in ALL}
    for name in ALL:
        systems[name.split("/")[0]] += 1
    assert systems["unibiomed"] == 7 and systems["uni_med"] == 10 and systems["zero_shot"] == 21
    assert {"biomedparse", "cvpr25", "umedground", "unimed"} <= set(systems)


def test_a_benchmark_of_ones_own_is_one_call(monkeypatch):
    monkeypatch.setattr(BENCHMARKS, "_module_dict", dict(BENCHMARKS.module_dict))
    declare(name="mine/masks", task="segmentation", reader="RecordDataset", metrics=("dice",),
            scorer="unimed.evaluation.benchmarks.declaring:score_any")  # fmt: skip
    mask = np.ones((3, 3), bool)
    region = Region("liver", mask=mask, presence=1.0)
    sample = Sample((mask,), Geometry.pixels(), "s", regions=(region,), labels={"task": "referring"})
    rows = benchmark("mine/masks").score([sample], [unimed.Prediction("", (region,))])
    assert [row["kind"] for row in rows] == ["mask", "presence"] and rows[0]["dice"] == 1
    with pytest.raises(RegistryError, match="did you mean 'dice'"):
        declare(name="mine/other", task="x", reader="RecordDataset", scorer="a:b", metrics=("dicee",))
    with pytest.raises(RegistryError, match="did you mean 'mine/masks'"):
        benchmark("mine/mask")
    with pytest.raises(ImportError, match="has no 'nothing'"):
        resolve("unimed.evaluation.tables:nothing")


def test_evaluate_gives_rows_and_one_table_with_intervals_over_patients(tmp_path):
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    samples, predictions = [], []
    for number in range(12):
        task = ("referring", "vqa", "absent")[number % 3]
        region = Region("liver", mask=mask, presence=1.0) if task == "referring" else Region("cyst", presence=0.0)
        words = (("user", "is it there?"), ("assistant", "yes"))
        regions, labels = () if task == "vqa" else (region,), {"task": task}
        patient = f"Jane {number // 4}"
        samples.append(
            Sample((mask,), Geometry.pixels(), f"s{number}", "CT", words, regions, labels, patient_id=patient)
        )
        shown = (region,) if task == "referring" and number < 9 else ()
        predictions.append(unimed.Prediction("Yes." if number < 6 else "no", shown))
    rows = unimed.evaluate(predictions, samples, folder=tmp_path)
    assert {row["kind"] for row in rows} == {"mask", "answer", "presence"} and "Jane" not in str(rows)
    table = {(line["kind"], line["task"], line["metric"]): line for line in rows.means(resamples=100)}
    dice = table["mask", "referring", "dice"]
    assert dice["cases"] == 4 and dice["patients"] == 3 and dice["mean"].value == 0.75
    assert dice["mean"].low <= 0.75 <= dice["mean"].high
    assert table["answer", "vqa", "exact_match"]["mean"].value == 0.5
    assert table["presence", "absent", "false_mask_rate"]["mean"].value == 0
    assert rows.means(by="modality", resamples=0)[0]["modality"] == "CT"
    written = rows.save(tmp_path / "out", command="python mine.py")
    assert [path.name for path in written] == ["cases.jsonl", "scores.md"]
    assert "`python mine.py`" in written[1].read_text() and "Research use only" in written[1].read_text()
    with pytest.raises(ValueError, match="11 predictions for 12 samples"):
        unimed.evaluate(predictions[1:], samples)
    other = unimed.Prediction("", (Region("liver", mask=np.ones((3, 3), bool)),))
    with pytest.raises(ValueError, match="s0: prediction .3, 3. and truth .8, 8."):
        unimed.evaluate(other, samples[0])
    with pytest.raises(ValueError, match="'site' is in no row"):
        rows.means(by="site")
