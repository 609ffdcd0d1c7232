"""Score segmented volumes: `python tools/score_volumes.py RESULTS TRUTHS`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("score-volumes", prog="score_volumes.py"))
