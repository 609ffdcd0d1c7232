"""Check a data set before training: `python tools/check_data.py FOLDER`; exit code 1 if something is wrong."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="check_data.py", description=__doc__)
    parser.add_argument("folder", help="a folder with records/*.jsonl, or a tree of UniBiomed's sets")
    parser.add_argument("--patient-pattern", help="for trees: regular expression, its group is the patient")
    parser.add_argument("--most", type=int, default=20, help="how many problems to print (default: 20)")
    parser.add_argument("--limit", type=int, help="for trees: look at the first so many records of each part only")
    args = parser.parse_args(argv)

    if args.patient_pattern is not None:
        import re

        try:
            groups = re.compile(args.patient_pattern).groups
        except re.error as error:
            parser.error(f"--patient-pattern {args.patient_pattern!r} is no regular expression ({error})")
        if groups != 1:
            parser.error(f"--patient-pattern {args.patient_pattern!r} needs one group, (...), around the patient")

    from unimed.data.checks import check

    try:
        report = check(args.folder, args.patient_pattern, args.limit)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.table(args.most))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
