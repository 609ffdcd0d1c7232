"""`unimed check-weights`: which code legacy weight files name."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from unimed.commands.common import Parser, exit_code, guarded, one_line, say


def check_weights(arguments=None, prog: str | None = None) -> int:
    """Report on files, and on those in folders."""
    parser = Parser(
        "Which code weight files in Python's pickle format name, found without running any of it. Every reader here\n"
        "looks before it opens such a file, where the extra `scan` is installed, and in no case runs what is named.\n"
        "Exit code: 0 no file names dangerous code, 2 some do or cannot be followed, 1 all.",
        prog=prog,
    )
    parser.add_argument("paths", nargs="+", type=Path, help="files, or folders that are searched")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of text")
    return guarded(_check_weights, parser.parse_args(arguments))


def _check_weights(args) -> int:
    from unimed.files import plain
    from unimed.pickles import SUFFIXES, scan

    files = []
    for path in args.paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            print(f"{path}: no file of {', '.join(SUFFIXES)} is there; safetensors hold no code", file=sys.stderr)
        files += found
    reports, wrong = [], 0
    for path in files:
        try:
            report = scan(path)
        except (OSError, ValueError) as error:
            wrong += 1
            print(f"error: {one_line(error)}", file=sys.stderr)
            continue
        reports.append(report)
        wrong += bool(report.dangerous) or not report.whole
        if not args.json:
            say(str(report))
    if args.json:
        print(json.dumps([plain(dataclasses.asdict(report)) for report in reports], indent=1))
    return exit_code(len(files) - wrong, wrong)
