"""Pictures of held-out answers of the sample model: `python tools/show_quickstart.py MODEL DATA OUT`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("quickstart-images", prog="show_quickstart.py"))
