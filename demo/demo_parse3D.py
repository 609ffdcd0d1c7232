"""Segment volumes by prompts: `python demo/demo_parse3D.py CASE.nii.gz --prompts liver spleen --model M`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("demo-parse3d", prog="demo_parse3D.py"))
