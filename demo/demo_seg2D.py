"""Segment a 2D test set, or one image: `python demo/demo_seg2D.py --image X.png --text "..." --model_path M`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("demo-seg2d", prog="demo_seg2D.py"))
