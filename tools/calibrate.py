"""Learn a calibration file from a per-case file of an evaluation, and measure it on other cases."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("calibrate", prog="calibrate.py"))
