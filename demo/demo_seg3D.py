"""Segment a 3D test set, or one volume: `python demo/demo_seg3D.py --volume X.nii.gz --text "..." --model_path M`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("demo-seg3d", prog="demo_seg3D.py"))
