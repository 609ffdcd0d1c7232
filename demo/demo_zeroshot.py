"""Which label fits: `python demo/demo_zeroshot.py --model_path M --images X.png --labels "brain MRI" "chest X-ray"`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimed.commands.zero_shot import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
