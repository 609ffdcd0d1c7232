"""Prepare data: `python tools/prepare_data.py VERB [options]`; `sample` fetches the small set of the quickstart."""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.data.prepare import COMMANDS  # noqa: E402


def main(argv=None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="prepare_data.py", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, location in COMMANDS.items():
        command = verbs.add_parser(verb, help=f"see `prepare_data.py {verb} --help`")
        # Only the verb that was typed is imported, so that one that needs an extra hinders no other.
        if verb in argv[:1]:
            importlib.import_module(location).add_arguments(command)
    args = parser.parse_args(argv)
    return importlib.import_module(COMMANDS[args.verb]).run(args)


if __name__ == "__main__":
    sys.exit(main())
