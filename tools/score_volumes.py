"""Score segmented volumes: `python tools/score_volumes.py RESULTS TRUTHS`.

Dice, IoU and NSD per target and modality, F1 and AP of instances, AUROC of existence, and the scoring of the CVPR 2025
text-prompted challenge. Writes cases.jsonl, scores.json and scores.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="folder that demo_parse3D.py wrote (formats npz or nifti with json)")
    parser.add_argument("truths", help="folder of NPZ (gts), NIfTI or NRRD label maps of the same names")
    parser.add_argument("--out", help="folder of the tables (default: RESULTS/scores)")
    parser.add_argument("--prompts", help='JSON table {"1": "liver", ...} where the files hold none')
    parser.add_argument("--tolerances-mm", nargs="+", type=float, default=[1.0, 2.0], help="of NSD (default: 1 2)")
    parser.add_argument("--iou", nargs="+", type=float, default=[0.5, 0.75], help="of instances (default: 0.5 0.75)")
    parser.add_argument(
        "--empty", default="ignore", choices=("ignore", "perfect", "zero"), help="two empty masks score"
    )
    parser.add_argument(
        "--compat", choices=("reference",), help="challenge scoring as published: false labels are free"
    )
    parser.add_argument("--no-surfaces", action="store_true", help="leave NSD out, which needs MONAI")
    args = parser.parse_args(argv)

    from unimed.evaluation.benchmarks import benchmark
    from unimed.evaluation.cases import project
    from unimed.evaluation.scorers.label_maps import summarise
    from unimed.evaluation.tables import this_command

    out = Path(args.out) if args.out else Path(args.results) / "scores"
    try:
        with project(out):
            scores = benchmark("biomedparse/volumes").score(
                args.results, args.truths, prompts=args.prompts, tolerances_mm=args.tolerances_mm, thresholds=args.iou,
                empty=args.empty, compat=args.compat, surfaces=not args.no_surfaces,
            )  # fmt: skip
    except (FileNotFoundError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summarise(scores, out, command=this_command(), empty=args.empty, compat=args.compat))
    return 1 if scores.problems else 0


if __name__ == "__main__":
    sys.exit(main())
