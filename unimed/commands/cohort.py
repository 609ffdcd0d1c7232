"""What `unimed predict` does with `--engine`: a cohort on several processes or a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unimed.commands.common import NOTHING, PARTLY, Parser, count, say
from unimed.commands.volume_flags import volume_choices
from unimed.files import read_json

_COHORT_ONLY = ("workers", "part_rows", "rows", "worker_gpus")
#: Keys of a job file that are no flags.
_JOB_WORDS = ("model", "sources", "texts")


def add_cohort_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a cohort."""
    group = parser.add_argument_group("cohorts (docs/cohorts.md)")
    group.add_argument("--engine", choices=("local", "ray"), help="processes of this machine, or Ray")
    group.add_argument("--workers", type=count, help="processes or actors, a model each (default: 1)")
    group.add_argument("--part-rows", type=count, help="records of a part, the unit of work (default: 64)")
    group.add_argument("--rows", choices=("parquet", "jsonl"), help="rows (default: parquet, jsonl without pyarrow)")
    group.add_argument("--worker-gpus", type=float, help="GPUs of a Ray actor (default: 1 where there are any)")
    group.add_argument(
        "--job", metavar="FILE", help='JSON: {"model": ..., "sources": [...], "texts": [...], FLAG: ...}'
    )


def with_job(parser: Parser, arguments: Sequence[str]) -> list[str]:
    """The arguments with those of `--job FILE` before them, so that what is typed counts."""
    arguments = list(arguments)
    place = next((number for number, word in enumerate(arguments) if word.partition("=")[0] == "--job"), None)
    if place is None:
        return arguments
    _, equals, file = arguments[place].partition("=")
    if not equals:
        file = arguments[place + 1] if place + 1 < len(arguments) else ""
    typed = arguments[:place] + arguments[place + (1 if equals else 2) :]
    try:
        job = read_json(file)
        if not isinstance(job, dict) or not job.get("model") or not job.get("sources") or not job.get("texts"):
            raise ValueError(f"{file}: a job names model, sources and texts")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    words = [str(job["model"]), *map(str, _listed(job["sources"])), "--text", *map(str, _listed(job["texts"]))]
    for name, value in job.items():
        if name in _JOB_WORDS or value is None or value is False:
            continue
        words.append("--" + str(name).replace("_", "-"))
        words += [] if value is True else map(str, _listed(value))
    return [*words, *typed]


def _listed(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def refuse_cohort_flags(args: argparse.Namespace) -> None:
    """Raises ValueError where a flag of cohorts stands without `--engine`."""
    if given := [name for name in _COHORT_ONLY if getattr(args, name) is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')} is of cohorts; add --engine local or --engine ray")


def _is_source(word: str) -> bool:
    from unimed.inference.asking import looks_like_a_path
    from unimed.io.remote import is_url

    return is_url(word) or Path(word).exists() or looks_like_a_path(word)


def predict_cohort(args: argparse.Namespace) -> int:
    """Run the cohort and say what became of it; returns the exit code."""
    from unimed.inference.asking import SourceError
    from unimed.inference.cohort.asking_model import AskingModel
    from unimed.inference.cohort.running import PART_ROWS, run_cohort

    split = 1
    while split < len(args.words) and (args.text or _is_source(args.words[split])):
        split += 1
    texts = [*args.words[split:], *args.text]
    if not texts or not all(text.strip() for text in texts):
        raise SourceError("no question: give it after the sources, or with --text")
    predictor = AskingModel(
        args.model, tuple(texts), args.device, args.dtype, args.task, args.plane, tuple(args.formats),
        args.deidentified, args.site, args.modality, tuple(args.window) if args.window else None, args.page,
        volume_choices(args), args.max_new_tokens,
    )  # fmt: skip
    report = run_cohort(
        args.out, args.words[:split], predictor, predictor.settings(), engine=args.engine, workers=args.workers or 1,
        part_rows=args.part_rows or PART_ROWS, form=args.rows, restart=args.restart, gpus_each=args.worker_gpus,
        one_series=bool(args.series), nameless=args.deidentified,
    )  # fmt: skip
    say(
        f"{report.finished} of {report.rows} rows in {args.out}/rows, {report.skipped} of them before, "
        f"{report.failed} without an answer; research use only"
    )
    if report.failed:
        print(f"failed: the reasons are in the column error, and in {args.out}/parts/*/failed.jsonl", file=sys.stderr)
    if report.stopped or report.missing:
        say_missing = f"rows {report.missing} are missing, see {args.out}/missing.jsonl; the same command goes on"
        print(f"error: stopped: {report.stopped}; {say_missing}", file=sys.stderr)
        return PARTLY if report.finished > report.failed else NOTHING
    return report.exit_code
