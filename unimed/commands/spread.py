"""`unimed spread`: what several runs of one recipe (other seeds) score together, and how far they lie apart."""

from __future__ import annotations

from pathlib import Path

from unimed.commands.common import DONE, Parser, count, guarded

_DESCRIPTION = """Join tests of several runs of one recipe: means with intervals that draw runs and patients anew, and
the value of every run.

    unimed spread work_dirs/seed0 work_dirs/seed1 work_dirs/seed2

A run is a folder with test/scores.jsonl, which `unimed test` writes."""


def spread(arguments=None, prog: str | None = None) -> int:
    """Join tests of several runs."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a tested run")
    parser.add_argument("--resamples", type=count, default=1000, help="bootstrap samples (default: 1000)")
    parser.flag("seed")
    return guarded(_spread, parser.parse_args(arguments))


def _spread(args) -> int:
    from unimed.evaluation.spread import spread as over_runs
    from unimed.evaluation.tables import markdown_table, read_cases, this_command

    runs = []
    for folder in map(Path, args.runs):
        path = next((one for one in (folder / "test" / "scores.jsonl", folder / "scores.jsonl") if one.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{folder} holds no test/scores.jsonl; run `unimed test` first")
        runs.append(read_cases(path))
    lines = over_runs(runs, resamples=args.resamples, seed=args.seed)
    rows = [line | {"runs": " ".join(f"{value:.3f}" for value in line["runs"])} for line in lines]
    print(markdown_table(rows, command=this_command()))
    print("Intervals draw runs and patients anew (cases, where all are of one patient). Research use only.")
    return DONE
