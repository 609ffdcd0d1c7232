"""The console script `unimed`: the verbs of the tools, for people who installed the wheel."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_TASK_COLUMNS = ("kind", "modality", "anatomy", "target", "median_dice", "test_images")


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    description = "Grounded biomedical vision-language models. Research use only."
    parser = argparse.ArgumentParser(prog="unimed", description=description)
    verbs = parser.add_subparsers(dest="verb", required=True)

    predict = verbs.add_parser("predict", help="answer a question about an image and point at what is said")
    predict.add_argument("model", help="exported folder or published checkpoint")
    predict.add_argument("image", help="PNG, JPEG, TIFF, DICOM, NIfTI slice")
    predict.add_argument("text", nargs="+", help="questions; the labels for a contrastive model")
    predict.add_argument("--out", default="predictions", help="folder for JSON and overlay (default: predictions)")
    predict.add_argument("--device", default="auto")
    predict.add_argument("--max-new-tokens", type=int, default=256)

    train = verbs.add_parser("train", help="train as a config says")
    train.add_argument("config")
    train.add_argument("--work-dir")
    train.add_argument("--resume", nargs="?", const="auto")

    test = verbs.add_parser("test", help="test a checkpoint on the test data of a config")
    test.add_argument("config")
    test.add_argument("--checkpoint")
    test.add_argument("--work-dir")

    export = verbs.add_parser("export", help="write a trained run as a Hugging Face folder")
    export.add_argument("config")
    export.add_argument("checkpoint")
    export.add_argument("destination")

    tasks = verbs.add_parser("list-tasks", help="what BiomedParse can be asked for, by modality and anatomy")
    tasks.add_argument("--kind", choices=("volume", "image"), help="3D or 2D targets only")
    tasks.add_argument("--modality", help="beginning of a modality, such as CT or MRI")
    tasks.add_argument("--anatomy", help="beginning of an anatomy, such as thoracic or brain")
    tasks.add_argument("--json", action="store_true", help="JSON instead of a table")

    args = parser.parse_args(arguments)
    verb = {"predict": _predict, "train": _train, "test": _test, "export": _export, "list-tasks": _list_tasks}
    try:
        return verb[args.verb](args)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _predict(args) -> int:
    from unimed.files import refuse_to_replace
    from unimed.io.images import read_image
    from unimed.models.auto import load

    names = [f"{Path(args.image).name.split('.')[0]}-{number}" for number in range(len(args.text))]
    for name in names:
        refuse_to_replace(args.image, args.out, name)
    # Read first: a wrong path should not cost the loading of a model.
    image = read_image(args.image)
    model = load(args.model, device=args.device)
    if hasattr(model, "zero_shot"):
        # A contrastive model compares: what was asked are the labels.
        for label, probability in model.zero_shot(args.image, args.text).ranked():
            print(f"{probability:.3f}  {label}")
        return 0
    # A model that writes no text (BiomedParse) takes prompts, and has no length of an answer.
    options = {"max_new_tokens": args.max_new_tokens} if hasattr(model, "language_model") else {}
    predictions = model.predict(image, args.text, **options)
    for name, prediction in zip(names, predictions, strict=True):
        print(prediction.text)
        for path in prediction.save(args.out, name, ("json", "png"), image=image.rgb):
            print(f"  {path}")
    return 0


def _train(args) -> int:
    from unimed.engine import train

    result = train(args.config, args.work_dir, args.resume)
    if result["stopped"]:
        from unimed.engine.training import PREEMPTED

        return PREEMPTED
    return 0


def _test(args) -> int:
    from unimed.engine import evaluate
    from unimed.engine.testing import markdown

    print(markdown(evaluate(args.config, args.checkpoint, args.work_dir)))
    return 0


def _export(args) -> int:
    from unimed.engine.exporting import export

    print(export(args.config, args.checkpoint, args.destination))
    return 0


def _list_tasks(args) -> int:
    import json

    from unimed.data.wordings.biomedparse_targets import lineage, list_targets

    rows = list_targets(args.kind, args.modality, args.anatomy)
    if args.json:
        print(json.dumps([{**row, "hierarchy": list(lineage(row["target"]))} for row in rows], indent=1))
        return 0
    from unimed.evaluation.tables import markdown_table

    print(markdown_table(rows, columns=[c for c in _TASK_COLUMNS if any(c in row for row in rows)]))
    print(f"{len(rows)} targets; other words work too, these are the ones it was trained on. Research use only.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
