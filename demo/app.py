"""Try labels on images in a browser: `python demo/app.py --model_path M [--model_path OTHER]`. Needs extra `serve`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("serve", prog="app.py"))
