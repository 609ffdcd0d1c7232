"""Benchmarks as external tasks of lmms-eval: a folder for its `--include_path`, and the functions its YAML names.

    unimed benchmark vqa_rad --lmms-tasks tasks/
    lmms-eval --model qwen2_5_vl --include_path tasks/ --tasks unimed_vqa_vqa_rad --batch_size 1

A document names a benchmark, the folder of its data and a place in it; image, question and truth are read by the data
set of the benchmark, and an answer is scored by its scorer. So both harnesses give the same number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from unimed.evaluation.benchmarks.declaring import Benchmark, benchmark
from unimed.evaluation.contestants.base import asked, is_stack
from unimed.evaluation.contestants.text_boxes import prediction_of
from unimed.evaluation.harness.running import Samples
from unimed.files import write_json_lines, write_text
from unimed.io.windows import to_uint8
from unimed.models.dialects import build_dialect
from unimed.structures import Sample

FUNCTIONS = "unimed_functions.py"
#: Name of the number, and how boxes in an answer are read.
METRIC, DIALECT = "unimed_headline", "qwen3_vl"


def task_name(one: Benchmark) -> str:
    """What the task is called there."""
    return "unimed_" + one.name.replace("/", "_")


def write_task(one: Benchmark, folder: str | Path, out: str | Path, limit: int | None = None) -> Path:
    """Write `TASK.yaml`, its documents and the file of functions; returns the YAML.

    Args:
        folder: of the data of the benchmark. out: for `--include_path`.
    """
    samples, out, name = Samples(one.dataset(folder), limit), Path(out).absolute(), task_name(one)
    documents = [
        {"benchmark": one.name, "folder": str(Path(folder).absolute()), "index": n} for n in range(len(samples))
    ]
    data = write_json_lines(out / "data" / f"{name}.jsonl", documents)
    functions = ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results", "mean_of_rows")
    write_text(out / FUNCTIONS, f"from {__name__} import {', '.join(functions)}  # noqa: F401\n")
    stem = FUNCTIONS.removesuffix(".py")
    lines = [
        f"task: {name}",
        "dataset_path: json",
        "dataset_kwargs:",
        "  data_files:",
        f"    test: {json.dumps(str(data))}",
        "test_split: test",
        "output_type: generate_until",
        *(f"{key}: !function {stem}.{key}" for key in functions[:-1]),
        "generation_kwargs:",
        "  max_new_tokens: 512",
        "  temperature: 0",
        "  do_sample: false",
        "metric_list:",
        f"  - metric: {METRIC}",
        f"    aggregation: !function {stem}.mean_of_rows",
        "    higher_is_better: true",
        "metadata:",
        "  - version: 1.0",
    ]
    return write_text(out / f"{name}.yaml", "\n".join(lines) + "\n")


@lru_cache(maxsize=4)
def _dataset(name: str, folder: str):
    return benchmark(name).dataset(folder)


def sample_of(document: Mapping) -> Sample:
    """The sample a document stands for."""
    return _dataset(document["benchmark"], document["folder"])[document["index"]]


def doc_to_visual(document: Mapping) -> list:
    """Its images as PIL images.

    Raises:
        ValueError: a volume, which lmms-eval has no place for.
    """
    from PIL import Image

    sample = sample_of(document)
    if is_stack(sample):
        raise ValueError(f"sample {sample.sample_id} is a volume; lmms-eval is shown images")
    return [Image.fromarray(i if i.dtype == np.uint8 else to_uint8(i)).convert("RGB") for i in sample.images]


def doc_to_text(document: Mapping, lmms_eval_specific_kwargs=None) -> str:
    """Its question; that for a place asks for boxes as the dialect writes them."""
    return build_dialect(DIALECT).write(asked(sample_of(document))).conversation[0][1]


def doc_to_target(document: Mapping) -> str:
    """Its answer in words."""
    return next((text for role, text in sample_of(document).conversation if role == "assistant"), "")


def process_results(document: Mapping, results: Sequence[str]) -> dict[str, list[float]]:
    """The values of the headline in the rows of an answer."""
    one, sample = benchmark(document["benchmark"]), sample_of(document)
    answer = prediction_of(str(results[0]), build_dialect(DIALECT), asked(sample))
    metric = one.headline or one.metrics[0]
    rows, _, _ = one.rows([sample], [answer])
    return {METRIC: [float(r[metric]) for r in rows if r["kind"] == one.row_kind and r.get(metric) is not None]}


def mean_of_rows(values: Sequence[Sequence[float]]) -> float:
    """The mean over all rows, which are not as many for each document; NaN without any."""
    rows = [value for one in values for value in one if not math.isnan(value)]
    return float(np.mean(rows)) if rows else float("nan")
