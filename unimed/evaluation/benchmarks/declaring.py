"""Declaration of benchmarks: what one is, and how it is registered."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from unimed.evaluation.evaluating import evaluate, scores_of
from unimed.io.result import Prediction
from unimed.registry import BENCHMARKS, METRICS, RegistryError, did_you_mean, look_up, registered
from unimed.structures import Sample


class Scorer(Protocol):
    """Contract of a scorer of samples: compares them with predictions, one for each, in their order.

    It returns rows of the schema (`unimed.evaluation.evaluating.Rows`), or {"summary": {name: number}, "tables":
    {title: rows}, "cases": rows}. Scorers of published layouts take folders in place of samples and predictions; a
    declaration's `note` or the docstring of the scorer says so.
    """

    def __call__(self, samples: Sequence[Sample], predictions: Sequence[Prediction], **options) -> list | dict: ...


@dataclass(frozen=True)
class Benchmark:
    """A short declaration.

    Args:
        name: "system/set".
        task: what is asked: segmentation, answers, captions, boxes, classes, ...
        reader: what reads its data: the registered name of a data set, or "module:function".
        split: which part of the data is scored.
        questions: who words the questions: "data" (they stand in the files), "labels" (prompts made of class names),
            or a module with the wording.
        scorer: "module:function" that compares, a `Scorer`; imported when it is called.
        metrics: names of registered metrics its numbers are made of.
        reader_options: arguments the reader always gets.
        options: arguments the scorer always gets.
        published: published name of a number -> our name of it.
        note: what has to be minded when numbers are compared.
        samples: registered data set that `unimed benchmark` asks from; "" where `reader` is one. Readers of published
            layouts give cases of files instead, which their own scorers compare.
        files: argument of the data set -> place below the folder of the benchmark; "{part}" stands for the part read.
        test, train: further arguments of the data set for the part that is scored, and for the one that may be trained
            on (leak checks, training priors); `train` is None where there is none to be had.
        folder: of its data below that of all benchmarks (`data_folder`).
        layout: what lies in the folder, as it is downloaded.
        license: of the data. homepage: where they are to be had, and how.
        leaks: what is known to be shared by training and test data.
        samples_scorer: compares those samples; `unimed.evaluate` by default.
        headline: column that runs are ranked by, `metrics[0]` by default. row_kind: kind of the rows it is read from.
    """

    name: str
    task: str
    reader: str
    scorer: str
    metrics: tuple[str, ...]
    split: str = "test"
    questions: str = "data"
    reader_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    samples: str = ""
    samples_scorer: str = ""
    headline: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] | None = None
    folder: str = ""
    layout: str = ""
    license: str = ""
    homepage: str = ""
    leaks: str = ""
    row_kind: str = "mask"

    def __call__(self, *args, **options):
        return self.score(*args, **options)

    def score(self, *args, **options):
        """Run the scorer on what it takes (samples and predictions, or folders); see its docstring."""
        return resolve(self.scorer)(*args, **{**self.options, **options})

    def read(self, *args, **options):
        """What the reader gives: a data set of samples, or a list of cases."""
        from unimed.registry import DATASETS

        read = resolve(self.reader) if ":" in self.reader else look_up(self.reader, DATASETS)
        return read(*args, **{**self.reader_options, **options})

    def dataset(self, folder: str | Path, part: str = "test"):
        """The samples of a part, "test" or "train".

        Raises:
            FileNotFoundError: the folder is not there; how the data are to be had is said.
            ValueError: there is no training part; and what the reader raises.
        """
        from unimed.registry import DATASETS

        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder for {self.name}. {self.how_to_get()}")
        further = self.test if part == "test" else self.train
        if further is None:
            raise ValueError(f"{self.name} has no part {part!r}")
        places = {name: str(folder / place.replace("{part}", part)) for name, place in self.files.items()}
        options = {**(self.reader_options if not self.samples else {}), **places, **further}
        return DATASETS.build({"type": self.samples or self.reader, **options})

    def how_to_get(self) -> str:
        """Where the data are, under which license, and how they are laid out, in one line."""
        known = {"get it": self.homepage, "license": self.license, "layout": self.layout}
        return "; ".join(f"{name}: {text}" for name, text in known.items() if text)

    def rows(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> tuple[list[dict], dict, dict]:
        """(rows of the schema, {name: number}, {title: table}) of samples and predictions, in their order."""
        scorer = (self.samples_scorer or f"{__name__}:score_any") if self.samples else self.scorer
        found = resolve(scorer)(samples, predictions, **({} if self.samples else self.options))
        if isinstance(found, Mapping):
            found = scores_of(found)
            return found["cases"], found["summary"], found["tables"]
        return list(found), {}, {}


def data_folder(one: Benchmark) -> Path:
    """Where its data are looked for: below the folder that `UNIMED_BENCHMARKS` names, `data/benchmarks` by default."""
    return Path(os.environ.get("UNIMED_BENCHMARKS") or Path("data") / "benchmarks") / (one.folder or one.name)


def declare(**fields) -> Benchmark:
    """Register a benchmark.

    Raises:
        KeyError: the name is taken. RegistryError: a metric that is not registered.
    """
    one = Benchmark(**fields)
    for name in one.metrics:
        look_up(name, METRICS)
    BENCHMARKS.register_module(name=one.name, module=one)
    return one


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name, or of the part behind the slash where only one ends so ("vqa_rad").

    Raises:
        RegistryError: an unknown name, with the valid ones and the closest.
    """
    known = registered(BENCHMARKS)
    alike = [one for one in known if one.rpartition("/")[2] == name]
    name = alike[0] if len(alike) == 1 else name
    if name not in known:
        raise RegistryError(
            f"unknown benchmark {name!r}{did_you_mean(name, known)} `unimed benchmark --list` shows all {len(known)}"
        )
    return known[name]


def benchmarks(prefix: str = "") -> dict[str, Benchmark]:
    """Name -> declaration of all benchmarks whose name begins with `prefix`."""
    return {name: one for name, one in sorted(registered(BENCHMARKS).items()) if name.startswith(prefix)}


def resolve(place: str):
    """The function "module:name" names.

    Raises:
        ImportError: no such module or function.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        raise ImportError(f"{module} has no {name!r}") from None


def score_any(samples, predictions, **options):
    """`unimed.evaluation.evaluating.evaluate` in the order of the other scorers."""
    return evaluate(predictions, samples, **options)
