"""Check a data set before training: `python tools/check_data.py FOLDER`; exit code 1 if something is wrong."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("check-data", prog="check_data.py"))
