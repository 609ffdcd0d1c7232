"""Scores of `demo_disease.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.unibiomed import metrics  # noqa: E402

if __name__ == "__main__":
    sys.exit(metrics("disease", prog="metrics_grounded_disease.py"))
