"""Evaluate and average contrastive models: `python tools/clip.py VERB --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.clip import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
