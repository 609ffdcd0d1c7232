"""`unimed demo-mrg`: reports in, phrases and boxes with their bands out."""

from __future__ import annotations

from pathlib import Path

from unimed.commands.common import Parser, guarded, load_model, say
from unimed.files import read_json_lines
from unimed.inference.runs import print_failures, run_cases
from unimed.names import ResultNames, without_suffix
from unimed.structures import Case

_DESCRIPTION = """Ground the phrases of reports.

One image with its report, or a file of JSON lines {"image": ..., "report": ...} for many (resumed where it stopped).
Writes OUT/NAME.json (phrases, boxes in pixels, their spread) and OUT/NAME.png (boxes with their bands)."""


def ground_reports(arguments=None, prog: str | None = None) -> int:
    """Ground one report or many."""
    parser = Parser(_DESCRIPTION, prog=prog)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, help="one image; give --report with it")
    source.add_argument("--cases", type=Path, help="JSON lines with image (relative to the file) and report")
    parser.add_argument("--report", help="report, phrase or question about --image; a path ending in .txt is read")
    parser.flag("model", required=True)
    parser.add_argument("--calibration", type=Path, help="file of tools/calibrate.py: calibrated confidence and boxes")
    parser.flag("out", type=Path, default=Path("predictions/mrg"))
    parser.flag("max-new-tokens")
    parser.flag("batch-size")
    parser.flag("device")
    parser.flag("restart")
    return guarded(run, parser.parse_args(arguments))


def read_cases(args) -> list[Case]:
    """Cases of the command line.

    Raises:
        ValueError: an image without a report, or a line that is no case (file and line are named).
        FileNotFoundError: no such file.
    """
    if args.image is not None:
        if not args.report:
            raise ValueError("--image needs --report: the report, phrase or question to ground")
        report = args.report
        if report.endswith(".txt") and Path(report).is_file():
            report = Path(report).read_text(encoding="utf-8")
        return [Case(ResultNames(args.out)(args.image), {"image": str(args.image), "report": " ".join(report.split())})]
    cases = []
    for number, row in read_json_lines(args.cases):
        try:
            image = Path(args.cases.parent, row["image"])
            called = str(row.get("id") or without_suffix(row["image"]).replace("/", "_"))
            name = ResultNames(args.out)(image, called=called)
            cases.append(Case(name, {"image": str(image), "report": row["report"]}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{args.cases}:{number}: a line holds image and report ({error!r})") from error
    return cases


def run(args) -> int:
    """Ground every report; 0 where all were, 1 where some failed (they are named)."""
    from unimed.files import refuse_to_replace
    from unimed.io.images import load as load_image
    from unimed.models.dialects.umedground import question  # not at the top: `--help` needs no model library

    cases = read_cases(args)
    for case in cases:
        refuse_to_replace(case.inputs["image"], args.out, case.name)
    if args.cases is not None:
        refuse_to_replace(args.cases, args.out, "cases")
    to = "ground phrases"
    model = load_model(args.model, able="predict_frames", to=to, device=args.device, calibration=args.calibration)

    def predict(batch):
        sources = [load_image(case.inputs["image"]) for case in batch]
        texts = [question(case.inputs["report"]) for case in batch]
        predictions = model.predict_batch(sources, texts, max_new_tokens=args.max_new_tokens)
        rows = []
        for case, source, prediction in zip(batch, sources, predictions, strict=True):
            prediction.save(args.out, case.name, formats=("json", "png"), image=source.rgb)
            rows.append(
                {
                    "image": Path(case.inputs["image"]).name,
                    "steps": list(source.steps),
                    "text": prediction.text,
                    "regions": _plain(prediction),
                }
            )
        return rows

    settings = {
        "model": str(args.model),
        "calibration": None if args.calibration is None else str(args.calibration),
        "max_new_tokens": args.max_new_tokens,
    }
    report = run_cases(cases, predict, args.out, settings=settings, batch_size=args.batch_size, restart=args.restart)
    for row in report.rows:
        say(f"{row['case']}: {row['text']}")
        if row.get("steps"):
            print(f"  image: {'; '.join(row['steps'])}")
        for region in row["regions"]:
            say("  " + "  ".join(f"{key} {_shown(value)}" for key, value in region.items()))
    print(f"{len(report.rows)} of {len(cases)} reports in {args.out}; research use only")
    print_failures(report)
    return report.exit_code


def _plain(prediction) -> list[dict]:
    return [
        {key: value for key, value in region.items() if key not in ("mask_rle", "phrase_span")}
        for region in prediction.to_dict()["regions"]
    ]


def _shown(value):
    if isinstance(value, list):
        return "(" + ", ".join(f"{item:.1f}" for item in value) + ")"
    return f"{value:.2f}" if isinstance(value, float) else value
