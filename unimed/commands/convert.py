"""`unimed convert`: a published checkpoint or configuration as a folder that `unimed.load` opens."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from unimed.commands.common import DONE, NOTHING, Parser, guarded, one_line
from unimed.registry import did_you_mean


def convert(arguments=None, prog: str | None = None) -> int:
    """Convert as `--from LAYOUT` says; the options of a layout are its own."""
    from unimed.layouts import CONVERTERS

    first = Parser("", add_help=False)
    first.add_argument("--from", dest="layout")
    layout = first.parse_known_args(arguments)[0].layout
    parser = Parser(
        "Convert a published checkpoint or configuration. Options of a layout: --from LAYOUT --help.", prog=prog
    )
    parser.add_argument("--from", dest="layout", required=True, metavar="LAYOUT", help=", ".join(CONVERTERS))
    parser.add_argument("source", help="file or folder as published, or its hub id: OWNER/NAME[/FILE]")
    parser.add_argument("destination", writes="new", help="folder to write; must not be there yet")
    parser.add_argument("--report", writes="file", help="write what became of every tensor as JSON to this file")
    options = parser.add_argument_group(f"options of {layout}")
    if layout is not None:
        if layout not in CONVERTERS:
            hint = did_you_mean(layout, CONVERTERS) or ";"
            parser.error(f"unknown layout {layout!r}{hint} known are {', '.join(CONVERTERS)}")
        # Only the layout that was typed is imported, so that --help is quick.
        module = importlib.import_module(CONVERTERS[layout])
        if hasattr(module, "add_arguments"):
            module.add_arguments(options)
    args = parser.parse_args(arguments)
    names = [action.dest for action in options._group_actions]
    args.options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    args.module = module
    return guarded(_convert, args)


def _names_a_file(path: Path) -> bool:
    return path.suffix.lower() in (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".yaml", ".yml", ".gguf")


def _convert(args) -> int:
    from unimed.files import write_report
    from unimed.models.checkpoints.reading import other_kind

    source = Path(args.source)
    if not source.exists():
        # OWNER/NAME or OWNER/NAME/FILE; a file name alone, or a path that is mistyped, is not asked the hub for.
        if args.source.count("/") not in (1, 2) or (args.source.count("/") == 1 and _names_a_file(source)):
            raise FileNotFoundError(f"{args.source}: no such file or folder")
        from unimed.models.auto import LoadError, source_of

        try:
            source = source_of(args.source)
        except LoadError as error:
            raise FileNotFoundError(f"{args.source}: no such file or folder, and nothing of the hub") from error
    if Path(args.destination).exists():
        raise FileExistsError(f"{args.destination} is already there; choose another name or remove it")
    if kind := other_kind(source):
        wanted = "a configuration" if args.layout.endswith("yaml") else "a checkpoint"
        raise ValueError(f"{args.source}: {kind}, not {wanted}; give the published file or folder")
    try:
        report = args.module.convert(source, Path(args.destination), **args.options)
    except (OSError, ValueError, KeyError) as error:
        text = one_line(error)
        if isinstance(error, KeyError):  # a tensor or field that every checkpoint of the layout has
            text = f"{args.source}: no checkpoint of layout {args.layout}: {text} is missing"
        # Some checks see tensors only; the user should still read which file they are from.
        text = text if args.source in text or args.destination in text else f"{args.source}: {text}"
        print(f"error: {text}", file=sys.stderr)
        if args.report and getattr(error, "report", None):
            write_report(args.report, error.report.to_dict())
        return NOTHING
    print(f"{report.layout}: {report.mapped} entries of {report.source} -> {report.destination}")
    print(f"missing {len(report.missing)}, unexpected {len(report.unexpected)}, dropped {len(report.dropped)}")
    for name, reason in report.dropped.items():
        print(f"  dropped {name}: {reason}")
    for note in report.notes:
        print(f"  note: {note}")
    if (Path(args.destination) / "config.json").is_file():
        from unimed.data.licenses import published, write_sources

        write_sources(args.destination, [published("weights", args.source, f"layout {report.layout}")])
    if args.report:
        write_report(args.report, report.to_dict())
    return DONE
