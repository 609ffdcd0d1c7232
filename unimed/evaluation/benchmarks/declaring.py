"""Declaration of benchmarks: what one is, and how it is registered."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from unimed.io.result import Prediction
from unimed.registry import BENCHMARKS, METRICS, look_up, registered
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
    """The benchmark of a name.

    Raises:
        RegistryError: an unknown name, with the valid ones and the closest.
    """
    return look_up(name, BENCHMARKS)


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
    from unimed.evaluation.evaluating import evaluate

    return evaluate(predictions, samples, **options)
