"""Speed of prediction, as ratios measured in one run: `python tools/benchmark.py phrases MODEL IMAGE`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("speed", prog="benchmark.py"))
