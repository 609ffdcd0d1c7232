"""The work behind `tools/calibrate.py`: split by patient, learn, measure, write, draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unimed.commands.common import DONE, Parser, guarded
from unimed.evaluation.tables import markdown_table, read_cases, this_command
from unimed.files import write_report, write_text
from unimed.metrics.calibration import Calibration, Cases, uncertainty_of
from unimed.metrics.reliability import reliability_bins
from unimed.metrics.selective import color_of_curve, plot_risk_coverage

_DESCRIPTION = """Learn a calibration file from a per-case file of an evaluation, and measure it on other cases: boxes
that hold the truth, the presence from which on a mask is shown, margins and confidence of masks, whatever the rows are
about.

    unimed calibrate work/val/cases.jsonl --test work/test/cases.jsonl --output calibration.json

Without --test a fraction of the patients is set aside for measuring. The cases must not stem from the training set."""


def split_by_patient(rows: Sequence[Mapping], fraction: float, seed: int = 0) -> tuple[list[Mapping], list[Mapping]]:
    """Two disjoint parts of the rows, the second with about `share` of the patients (field group, else case).

    Raises:
        ValueError: share outside (0, 1), or fewer than two patients.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"held-out fraction must lie in (0, 1), got {fraction}")
    owner = [str(row.get("group") or row.get("case") or number) for number, row in enumerate(rows)]
    names = sorted(set(owner))
    if len(names) < 2:
        raise ValueError(f"{len(names)} patient(s) cannot be split into calibration and test; give --test")
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    held = set(np.random.default_rng(seed).permutation(names)[:count])
    return (
        [row for row, name in zip(rows, owner, strict=True) if name not in held],
        [row for row, name in zip(rows, owner, strict=True) if name in held],
    )


def calibrate(arguments=None, prog: str | None = None) -> int:
    """Learn a calibration file and measure it."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("cases", type=Path, help="per-case JSONL of a test: boxes, presence, masks (scores.jsonl)")
    parser.add_argument(
        "--output", writes="file", type=Path, default=Path("calibration.json"), help="calibration file to write"
    )
    parser.add_argument("--test", type=Path, help="per-case JSONL to measure on")
    parser.add_argument("--held-out", type=float, default=0.5, help="fraction of patients to measure on without --test")
    parser.add_argument("--alpha", type=float, default=0.1, help="allowed fraction of misses and of false masks")
    parser.add_argument("--scale", choices=("pixel", "size", "sigma"), default="pixel", help="unit of the margins")
    parser.add_argument("--by", nargs="*", choices=("class", "size"), default=[], help="own margins per stratum")
    parser.add_argument("--map", choices=("temperature", "platt", "isotonic"), default="platt", help="confidence map")
    parser.add_argument("--outcome", choices=("hit_at_50", "iou"), default="hit_at_50", help="what confidence means")
    parser.add_argument("--plots", type=Path, help="folder for risk-coverage and reliability plots")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the bootstrap")
    return guarded(_calibrate, parser.parse_args(arguments))


def _calibrate(options) -> int:
    print(run(options))
    return DONE


def run(options) -> str:
    """Learn and measure as the command line says; writes the calibration, a report beside it and pictures.

    Returns:
        The markdown tables, as they also lie beside the calibration file.
    """
    rows = read_cases(options.cases)
    learn, test = (
        (rows, read_cases(options.test)) if options.test else split_by_patient(rows, options.held_out, options.seed)
    )
    calibration = Calibration.fit(
        learn,
        alpha=options.alpha,
        scale=options.scale,
        by=options.by,
        kind=options.map,
        outcome=options.outcome,
        provenance={"cases": options.cases.name},
    )
    report = calibration.evaluate(test, seed=options.seed)
    calibration.save(options.output)
    write_report(options.output.with_suffix(".report.json"), report)
    text = ""
    if calibration.boxes is not None:
        learned = calibration.provenance["boxes"]
        text = f"{report['boxes']} boxes of {report['patients']} patients measured, {learned} boxes learned from\n\n"
    if (presence := calibration.presence) is not None:
        text += (
            f"masks are shown from presence {presence.threshold:.4f} on: at most {presence.alpha:.0%} false masks, "
            f"learned from {sum(presence.prompts.values())} prompts for what is not there ({presence.patients})\n\n"
        )
    tables = [
        report.get(name) for name in ("presence", "masks", "mask_reliability", "coverage", "reliability", "sigma")
    ]
    tables.append(_flat(report.get("selective")))
    text += "\n".join(markdown_table(table) for table in tables if table) + f"\n`{this_command()}`\n"
    write_text(options.output.with_suffix(".md"), text)
    if options.plots and calibration.boxes is not None:
        draw(calibration, test, options.plots)
    return text


def _flat(scores):
    return scores and [{"measure": name, "value": value} for name, value in scores.items()]


def draw(calibration: Calibration, rows: Sequence[Mapping], folder: Path) -> list[Path]:
    """Pictures of what was measured: risk_coverage.png and, where there is confidence, reliability.png."""
    cases = Cases.read(rows)
    result = calibration.apply_arrays(
        cases.predicted, sigma=cases.sigma, confidence=cases.confidence, classes=cases.classes
    )
    written = []
    if (uncertainty := uncertainty_of(result, cases)) is not None:
        curves = {"calibrated": (uncertainty, 1 - cases.iou)}
        if cases.confidence is not None:
            curves["as the model said"] = (1 - cases.confidence, 1 - cases.iou)
        written.append(plot_risk_coverage(folder / "risk_coverage.png", curves))
    curves = {"as the model said": cases.confidence, "calibrated": result["confidence"]}
    curves = {name: values for name, values in curves.items() if values is not None}
    if curves:
        outcome = cases.iou if calibration.outcome == "iou" else (cases.iou >= 0.5).astype(float)
        measured = "measured: mean IoU" if calibration.outcome == "iou" else "measured: fraction with IoU >= 0.5"
        written.append(plot_reliability(folder / "reliability.png", curves, outcome, measured))
    return written


def plot_reliability(
    path: Path, curves: Mapping[str, np.ndarray], outcome: np.ndarray, measured: str = "measured"
) -> Path:
    """Reliability diagram as a PNG: mean outcome against mean confidence per bin, dots by the number of cases."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "k:", label="perfect")
    for place, (name, values) in enumerate(curves.items()):
        rows = reliability_bins(values, outcome)
        x, y, count = (np.array([row[key] for row in rows]) for key in ("confidence", "outcome", "count"))
        color = color_of_curve(name, place)
        axes.plot(x, y, label=name, color=color)
        axes.scatter(x, y, s=200 * count / count.sum() + 5, color=color)
    axes.set(xlabel="stated confidence", ylabel=measured, xlim=(0, 1), ylim=(0, 1), title=f"{len(outcome)} cases")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
    return path
