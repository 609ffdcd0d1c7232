"""`unimed prepare` and `unimed check-data`."""

from __future__ import annotations

import importlib
import re

from unimed.commands.common import DONE, NOTHING, Parser, guarded


def prepare(arguments, prog: str | None = None) -> int:
    """Fetch or convert a data set; each kind has its own options."""
    from unimed.data.prepare import COMMANDS

    parser = Parser("Prepare data; `sample` fetches the small set of the quickstart.", prog=prog)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=Parser)
    for kind, (location, description) in COMMANDS.items():
        command = kinds.add_parser(kind, help=description, description=description)
        # Only the kind that was typed is imported, so that one that needs an extra hinders no other.
        if kind in arguments[:1]:
            importlib.import_module(location).add_arguments(command)
    args = parser.parse_args(arguments)
    _groups(parser, getattr(args, "patient_pattern", None))
    return guarded(lambda args: importlib.import_module(COMMANDS[args.kind][0]).run(args), args)


def check_data(arguments=None, prog: str | None = None) -> int:
    """Check a data set before training; exit code 1 if something is wrong."""
    parser = Parser("Check a data set before training; exit code 1 if something is wrong.", prog=prog)
    parser.add_argument("folder", help="a folder with records/*.jsonl, a tree of UniBiomed's sets, or a config")
    parser.add_argument("--patient-pattern", help="for trees: regular expression, its group is the patient")
    parser.add_argument("--most", type=int, default=20, help="how many problems to print (default: 20)")
    parser.add_argument("--limit", type=int, help="for trees: look at the first so many records of each part only")
    parser.flag("model", default="", help="try every record on this model's processor (default: on a small stand-in)")
    args = parser.parse_args(arguments)
    if _groups(parser, args.patient_pattern) not in (None, 1):
        parser.error(f"--patient-pattern {args.patient_pattern!r} needs one group, (...), around the patient")
    return guarded(_check, args)


def _groups(parser: Parser, pattern: str | None) -> int | None:
    """Number of groups of a `--patient-pattern`; one that is no regular expression ends the command in one line."""
    try:
        return None if pattern is None else re.compile(pattern).groups
    except re.error as error:
        parser.error(f"--patient-pattern {pattern!r} is not a regular expression ({error})")


def collate_of(model: str = ""):
    """What makes batches for a model; without one for a small grounded model whose texts may be of any length."""
    if model:
        from unimed.models.auto import load

        loaded = load(model, device="cpu")
        processor, family = loaded.processor, loaded.config.model_type
    else:
        from unimed.models.starting.grounded_small import build_tiny

        processor, family = build_tiny(["a"]).processor, ""
        processor.max_prompt_tokens = 2**31
    if hasattr(processor, "tokens_per_tile"):
        from unimed.data.collate.grounded import GroundedCollator

        return GroundedCollator(processor)
    if "clip" in family:
        from unimed.data.readers.pairs import ImageTextCollator

        return ImageTextCollator(processor, scale=None)
    from unimed.data.collate.biomedparse import ParseCollator

    return ParseCollator(processor)


def _check(args) -> int:
    from unimed.data.checks import check, check_datasets

    if args.folder.endswith(".py"):
        report = check_datasets(_datasets_of(args.folder), collate_of(args.model))
    else:
        report = check(args.folder, args.patient_pattern, args.limit, collate_of(args.model))
    print(report.table(args.most))
    return DONE if report.ok else NOTHING


def _datasets_of(config: str) -> dict:
    """{"train", "val", "test", or one of them and a name: data set} of a config."""
    from unimed.engine.config import load_config
    from unimed.engine.stream import build_datasets

    settings, found = load_config(config), {}
    for split in ("train", "val", "test"):
        if settings[f"{split}_data"]:
            datasets, names, _, _ = build_datasets(settings[f"{split}_data"])
            several = len(datasets) > 1
            found |= {f"{split} {n}" if several else split: d for n, d in zip(names, datasets, strict=True)}
    return found
