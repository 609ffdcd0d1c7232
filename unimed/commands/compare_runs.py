"""`unimed compare-runs`: which of several models is better on the same cases, and how sure that is."""

from __future__ import annotations

from pathlib import Path

from unimed.commands.common import DONE, Parser, count, guarded
from unimed.evaluation.comparing import align, by_stratum, pairs, ranking, stability
from unimed.evaluation.harness.manifest import ManifestError, read_manifest
from unimed.evaluation.pages import about, leaderboard, write_page
from unimed.evaluation.tables import markdown_table, read_cases, this_command, write_cases

_DESCRIPTION = """Compare runs on the same cases: means with intervals over patients, ranks and how stable they are,
paired permutation tests with Holm's correction, sizes of effects, strata.

    unimed compare-runs work/model_a work/model_b --metric dice --kind mask --out work/compared

A run is a folder with cases.jsonl (`unimed.evaluate(...).save(folder)`, `unimed benchmark`) or such a file, with a name
before it if you like: ours=work/model_a. Written are comparison.html, comparison.md and comparison.jsonl."""


def compare_runs(arguments=None, prog: str | None = None) -> int:
    """Compare runs on the same cases."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="folder with cases.jsonl, or such a file")
    parser.add_argument("--metric", help="column that is compared (default: the headline of a benchmark)")
    parser.add_argument("--kind", help="rows of this kind only: mask, box, answer, ...")
    parser.add_argument("--task", help="rows of this task only")
    parser.add_argument("--target", help="rows of this target only")
    parser.add_argument("--common", action="store_true", help="leave out cases that not every run has")
    parser.add_argument("--resamples", type=count, default=1000, help="bootstrap samples (default: 1000)")
    parser.flag("out", help="folder of the page and tables; without it they are printed")
    parser.flag("seed")
    return guarded(_compare_runs, parser.parse_args(arguments))


def _compare_runs(args) -> int:
    runs, places = {}, list(map(named, args.runs))
    if args.metric is None:
        args.metric, args.kind = headline([path for _, path in places])
    for place, (name, path) in enumerate(places):
        if name in runs:
            name = f"{name} ({place + 1})"
        runs[name] = read_cases(path)
    fixed = {key: value for key in ("kind", "task", "target") if (value := getattr(args, key)) is not None}
    aligned = align(runs, args.metric, common=args.common, **fixed)
    options = {"resamples": args.resamples, "seed": args.seed}
    tables = {"Ranking": ranking(aligned, **options)}
    if len(runs) > 1:
        tables["Pairs"] = pairs(aligned, **options)
    if strata := by_stratum(aligned, **options):
        tables["By stratum"] = strata
    text = f"{about(aligned)}\n\n" + "\n".join(f"## {name}\n\n{markdown_table(rows)}" for name, rows in tables.items())
    if len(runs) > 1:
        text += f"\nKendall's tau of the order over resampled patients: {stability(aligned, **options)}\n"
    text += f"\n`{this_command()}`\n\nResearch use only.\n"
    print(text)
    if args.out:
        folder = Path(args.out)
        what = " ".join([args.metric, *fixed.values()])
        html = leaderboard(aligned, title=f"Comparison by {what}", command=this_command(), **options)
        write_page(folder / "comparison.html", html)
        write_page(folder / "comparison.md", text)
        rows = [{"table": name, **_plain(row)} for name, found in tables.items() for row in found]
        print(write_cases(folder / "comparison.jsonl", rows).parent / "comparison.html")
    return DONE


def headline(paths) -> tuple[str, str]:
    """(metric, kind of row) that runs of one benchmark are ranked by.

    Raises:
        ManifestError: a run without manifest. ValueError: runs of several benchmarks, or a headline that is a rate.
    """
    found = {}
    for path in paths:
        try:
            _, manifest = read_manifest(path.parent)
        except ManifestError as error:
            raise ManifestError(f"{error}; give --metric to compare other runs") from None
        found[manifest["benchmark"]] = (manifest["headline"]["metric"], manifest["headline"]["kind"])
    if len(found) > 1:
        raise ValueError(f"runs of several benchmarks ({', '.join(found)}) have no headline in common; give --metric")
    ((metric, kind),) = found.values()
    if kind == "presence":
        raise ValueError(f"the headline {metric} is a rate over cases and no column; give --metric")
    return metric, kind


def named(argument: str) -> tuple[str, Path]:
    """(name, file of rows) of `NAME=PATH` or `PATH`.

    Raises:
        FileNotFoundError: nothing there, or a folder without cases.jsonl.
    """
    name, separator, rest = argument.partition("=")
    if not separator or Path(argument).exists():
        name, rest = "", argument
    path = Path(rest)
    if path.is_dir():
        path = path / "cases.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a run is a folder with cases.jsonl")
    return name or (path.parent.name if path.name == "cases.jsonl" else path.stem), path


def _plain(row: dict) -> dict:
    from unimed.metrics.statistics import Interval

    flat = {}
    for key, value in row.items():
        if isinstance(value, Interval):
            flat |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
        else:
            flat[key] = value
    return flat
