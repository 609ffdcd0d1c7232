"""Ground the phrases of reports: `python demo/demo_mrg.py --image X.png --report "..." --model_path M --work-dir OUT`.

One image with its report, or a file of JSON lines {"image": ..., "report": ...} for many (resumed where it stopped).
Writes OUT/NAME.json (phrases, boxes in pixels, their spread) and OUT/NAME.png (boxes with their bands).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, help="one image; give --report with it")
    source.add_argument("--cases", type=Path, help="JSON lines with image (relative to the file) and report")
    parser.add_argument("--report", help="report, phrase or question about --image; a path ending in .txt is read")
    parser.add_argument("--model_path", required=True, help="folder that unimed.load opens")
    parser.add_argument("--calibration", type=Path, help="file of tools/calibrate.py: calibrated confidence and boxes")
    parser.add_argument("--work-dir", type=Path, default=Path("predictions/mrg"), help="folder to write into")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--restart", action="store_true", help="forget earlier results in the folder")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    args = parse(arguments)
    from unimed.commands.umedground import run

    try:
        return run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
