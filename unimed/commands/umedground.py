"""The work behind `demo/demo_mrg.py`: reports in, phrases and boxes with their bands out."""

from __future__ import annotations

import json
from pathlib import Path

from unimed.data.wordings.umedground import question
from unimed.inference.runs import print_failures, run_cases
from unimed.structures import Case


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
        return [Case(args.image.stem, {"image": str(args.image), "report": " ".join(report.split())})]
    cases = []
    for number, line in enumerate(args.cases.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image = Path(args.cases.parent, row["image"])
            name = str(row.get("id") or Path(row["image"]).with_suffix("")).replace("/", "_")
            cases.append(Case(name, {"image": str(image), "report": row["report"]}))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{args.cases}:{number}: a line holds image and report ({error!r})") from error
    return cases


def run(args) -> int:
    """Ground every report; 0 where all were, 1 where some failed (they are named)."""
    from unimed.files import refuse_to_replace
    from unimed.io.images import load as load_image
    from unimed.models.auto import load

    cases = read_cases(args)
    for case in cases:
        refuse_to_replace(case.inputs["image"], args.work_dir, case.name)
    if args.cases is not None:
        refuse_to_replace(args.cases, args.work_dir, "cases")
    model = load(args.model_path, device=args.device, calibration=args.calibration)

    def predict(batch):
        sources = [load_image(case.inputs["image"]) for case in batch]
        texts = [question(case.inputs["report"]) for case in batch]
        predictions = model.predict_batch(sources, texts, max_new_tokens=args.max_new_tokens)
        rows = []
        for case, source, prediction in zip(batch, sources, predictions, strict=True):
            prediction.save(args.work_dir, case.name, formats=("json", "png"), image=source.rgb)
            rows.append({"image": case.inputs["image"], "text": prediction.text, "regions": _plain(prediction)})
        return rows

    settings = {
        "model": str(args.model_path),
        "calibration": None if args.calibration is None else str(args.calibration),
        "max_new_tokens": args.max_new_tokens,
    }
    report = run_cases(
        cases, predict, args.work_dir, settings=settings, batch_size=args.batch_size, restart=args.restart
    )
    for row in report.rows:
        print(f"{row['case']}: {row['text']}")
        for region in row["regions"]:
            print("  " + "  ".join(f"{key} {_shown(value)}" for key, value in region.items()))
    print(f"{len(report.rows)} of {len(cases)} reports in {args.work_dir}; research use only")
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
