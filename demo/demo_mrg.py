"""Ground reports: `python demo/demo_mrg.py --image X.png --report "..." --model_path M --work-dir OUT`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("demo-mrg", prog="demo_mrg.py"))
