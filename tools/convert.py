"""Convert a published checkpoint or configuration: `python tools/convert.py --from LAYOUT SOURCE DESTINATION`.

Options of a layout: `python tools/convert.py --from LAYOUT --help`.
"""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.files import write_report  # noqa: E402
from unimed.layouts import CONVERTERS  # noqa: E402


def main(argv=None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--from", dest="layout")
    layout = first.parse_known_args(argv)[0].layout
    parser = argparse.ArgumentParser(
        prog="convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="layout", required=True, metavar="LAYOUT", help=", ".join(CONVERTERS))
    parser.add_argument("source", help="file or folder as published")
    parser.add_argument("destination", help="folder to write; must not be there yet")
    parser.add_argument("--report", help="write what became of every tensor as JSON to this file")
    options = parser.add_argument_group(f"options of {layout}")
    module = None
    if layout is not None:
        if layout not in CONVERTERS:
            print(f"error: unknown layout {layout!r}; known are {', '.join(CONVERTERS)}", file=sys.stderr)
            return 2
        # Only the layout that was typed is imported, so that --help is quick.
        module = importlib.import_module(CONVERTERS[layout])
        if hasattr(module, "add_arguments"):
            module.add_arguments(options)
    args = parser.parse_args(argv)
    names = [action.dest for action in options._group_actions]
    chosen = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        if not Path(args.source).exists():
            raise FileNotFoundError(f"{args.source}: no such file or folder")
        if Path(args.destination).exists():
            raise FileExistsError(f"{args.destination} is already there; choose another name or remove it")
        report = module.convert(Path(args.source), Path(args.destination), **chosen)
    except (OSError, ValueError) as error:
        text = str(error)
        # Some checks see tensors only; the user should still read which file they are from.
        text = text if args.source in text or args.destination in text else f"{args.source}: {text}"
        print(f"error: {text}", file=sys.stderr)
        if args.report and getattr(error, "report", None):
            write_report(args.report, error.report.to_dict())
        return 1
    print(f"{report.layout}: {report.mapped} entries of {report.source} -> {report.destination}")
    print(f"missing {len(report.missing)}, unexpected {len(report.unexpected)}, dropped {len(report.dropped)}")
    for name, reason in report.dropped.items():
        print(f"  dropped {name}: {reason}")
    for note in report.notes:
        print(f"  note: {note}")
    if args.report:
        write_report(args.report, report.to_dict())
    return 0


if __name__ == "__main__":
    sys.exit(main())
