"""Start a grounded model: a small one from your own records, or a large one from published parts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.cli import run_verb  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_verb("new-model", prog="new_model.py"))
