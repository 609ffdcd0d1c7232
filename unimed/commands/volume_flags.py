"""Flags by which the commands for volumes choose among series and phases."""

from __future__ import annotations

import argparse


def add_volume_choices(parser: argparse.ArgumentParser) -> None:
    """Flags that say which volume of a file or folder is meant; `volume_choices` reads them."""
    parser.add_argument("--series", help="of a folder with several DICOM series: number, UID or description")
    parser.add_argument("--phase", help="of 4D data: number of the phase, as the error without it lists them")
    parser.add_argument(
        "--irregular",
        default="refuse",
        choices=("refuse", "resample"),
        help="DICOM slices that are no even, complete stack: refuse them (default) or resample them to one",
    )


def volume_choices(args) -> dict:
    """The flags of `add_volume_choices` as arguments of `read`."""
    return {"series": args.series, "phase": args.phase, "irregular": args.irregular}
