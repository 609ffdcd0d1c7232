"""Scores of `demo_Medtrinity.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.unibiomed import metrics  # noqa: E402

if __name__ == "__main__":
    sys.exit(metrics("medtrinity", prog="metrics_medtrinity.py"))
