"""Learn a calibration file from a per-case file of an evaluation, and measure it on other cases.

    python tools/calibrate.py work/val/cases.jsonl --test work/test/cases.jsonl --output calibration.json

Without --test a share of the patients is set aside for measuring. The cases must not stem from the training set.
"""

import argparse
import sys
from pathlib import Path


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, help="per-case JSONL: predicted_box_xyxy_px, true_box_xyxy_px, ...")
    parser.add_argument("--output", type=Path, default=Path("calibration.json"), help="calibration file to write")
    parser.add_argument("--test", type=Path, help="per-case JSONL to measure on")
    parser.add_argument("--held-out", type=float, default=0.5, help="share of patients to measure on without --test")
    parser.add_argument("--alpha", type=float, default=0.1, help="allowed share of true boxes outside the outer box")
    parser.add_argument("--scale", choices=("pixel", "size", "sigma"), default="pixel", help="unit of the margins")
    parser.add_argument("--by", nargs="*", choices=("class", "size"), default=[], help="own margins per stratum")
    parser.add_argument("--map", choices=("temperature", "platt", "isotonic"), default="platt", help="confidence map")
    parser.add_argument("--outcome", choices=("hit_at_50", "iou"), default="hit_at_50", help="what confidence means")
    parser.add_argument("--plots", type=Path, help="folder for risk-coverage and reliability pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the bootstrap")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    options = parse(arguments)
    from unimed.commands.calibrate import run

    try:
        print(run(options))
    except (OSError, ValueError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
