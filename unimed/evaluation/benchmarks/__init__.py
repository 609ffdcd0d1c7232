"""Declared benchmarks: a name, where its data come from, who words its questions, what scores it, by which metrics.

    BENCHMARKS: {"unibiomed/grg": Benchmark(...), ...}; `benchmark("unibiomed/grg").score(...)`

A module of this package holds the declarations of one system; a new benchmark is one entry there (or one call of
`declare` anywhere).
"""

from unimed.evaluation.benchmarks.declaring import Benchmark, Scorer, benchmark, declare

__all__ = ["Benchmark", "Scorer", "benchmark", "declare"]
