"""Test a checkpoint on a config"s test_data: `python tools/test.py CONFIG --checkpoint RUN_OR_STEP_FOLDER`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("test", prog="test.py"))
