"""Scores of `demo_GVQA.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.unibiomed import metrics  # noqa: E402

if __name__ == "__main__":
    sys.exit(metrics("gvqa", prog="metrics_gvqa.py"))
