"""The zero-shot demonstration: images and labels in, a table and bar plots out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimed.commands.common import Parser, guarded, load_model
from unimed.names import ResultNames


def zero_shot(arguments=None, prog: str | None = None) -> int:
    """Compare labels with images."""
    parser = Parser(
        "Which of the labels fits each image: a table and bar plots. Research use only.",
        epilog='unimed demo-zeroshot --model M --images a.png folder/ --labels "brain MRI" "chest X-ray"',
        prog=prog,
    )
    parser.flag("model", required=True, help="folder, published checkpoint, or open_clip:NAME/WEIGHTS")
    parser.add_argument("--images", nargs="+", required=True, help="files (also DICOM, 16 bit) and folders")
    parser.add_argument("--labels", nargs="+", required=True, help="at least two; one per argument, or parted by |")
    parser.add_argument("--templates", nargs="+", help="prompts with {} for the label")
    parser.flag("out", default="zero_shot")
    parser.flag("site")
    parser.flag("device")
    parser.flag("batch-size", default=16)
    parser.add_argument("--compat", choices=["reference"], help="probabilities as the published demonstration showed")
    parser.flag("restart")
    return guarded(_zero_shot, parser.parse_args(arguments))


def _zero_shot(args) -> int:
    labels = [part.strip() for label in args.labels for part in label.split("|") if part.strip()]

    from unimed.inference.runs import print_failures, print_windows, run_cases
    from unimed.io.images import load as load_image
    from unimed.structures import Case

    paths = _files(args.images)
    model = load_model(args.model, able="zero_shot", to="compare labels with images", device=args.device)
    model.classifier(labels, args.templates)  # a wrong label is told before any image is read
    if len(labels) < 2 and not model.sigmoid:
        raise ValueError(f"only one label was given ({labels[0]!r}); it would always win: give at least two")

    def predict(batch: list[Case]) -> list[dict]:
        images = [load_image(case.inputs["path"], site=args.site) for case in batch]
        results = model.zero_shot(images, labels, args.templates, site=args.site, compat=args.compat)
        for case, image, result in zip(batch, images, results, strict=True):
            bars(image, result, Path(args.out) / "plots" / f"{case.name}.png", args.site)
        return [result.to_dict() | {"steps": list(image.steps)} for image, result in zip(images, results, strict=True)]

    settings = {"model": str(args.model), "labels": labels, "templates": args.templates, "site": args.site,
                "compat": args.compat}  # fmt: skip
    names = ResultNames(args.out).all(paths)
    cases = [Case(name, {"path": path}) for name, path in zip(names, paths, strict=True)]
    report = run_cases(cases, predict, args.out, settings=settings, batch_size=args.batch_size, restart=args.restart)
    print_windows(report.rows)
    print(table(report.rows, labels, Path(args.out)))
    print_failures(report)
    return report.exit_code


def _files(places: Sequence[str]) -> list[str]:
    from unimed.io.images import is_image_file
    from unimed.io.raster import SUFFIXES

    files: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            files += sorted(p for p in place.rglob("*") if is_image_file(p))
        elif place.exists():
            files.append(place)
        else:
            raise FileNotFoundError(f"{place}: no such file or folder")
    if not files:
        known = f"{', '.join(SUFFIXES)} and DICOM files of any name"
        raise FileNotFoundError(f"no image in {', '.join(map(str, places))}; known are {known}")
    return list(dict.fromkeys(str(path) for path in files))


def table(rows: Sequence[dict], labels: Sequence[str], work_dir: Path) -> str:
    """One line per image, written to `table.md` too."""
    from unimed.evaluation.tables import markdown_table, this_command
    from unimed.files import write_text

    lines = [
        {"image": row["case"], "best": row["label"]} | {x: row["probabilities"][x] for x in labels} for row in rows
    ]
    text = markdown_table(lines) + (
        "\nProbabilities compare the labels given with one another; they are no probabilities of a disease. "
        f"Research use only.\n\nReproduce: `{this_command()}`\n"
    )
    write_text(work_dir / "table.md", text)
    return text


def bars(image, result, path: Path, site: str = "", most: int = 12) -> Path:
    """The image beside a bar per label, best first, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from unimed.files import write_atomic
    from unimed.io.images import load as load_image

    ranked = result.ranked()[:most]
    figure = Figure(figsize=(9, max(2.6, 0.42 * len(ranked) + 1)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    left.imshow(load_image(image, site=site).rgb)
    left.axis("off")
    names = [name if len(name) <= 40 else name[:38] + "..." for name, _ in ranked]
    values = [value for _, value in ranked]
    drawn = right.barh(range(len(ranked)), values, color=["#2a6f97"] + ["#a9c5d6"] * (len(ranked) - 1))
    right.bar_label(drawn, [f"{value:.3f}" for value in values], padding=3)
    right.set_yticks(range(len(ranked)), names)
    right.invert_yaxis()
    right.set_xlim(0, 1.12)
    word = "share of the labels" if result.kind == "softmax" else "fit of each label by itself"
    right.set_xlabel(f"{word} (research use only)")
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    return write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
