"""What a run was made of: model, data, code, seed and command, and whether another run is the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

import unimed.version
from unimed.evaluation.benchmarks.declaring import Benchmark
from unimed.files import read_json
from unimed.identity import file_digest
from unimed.metrics.statistics import Interval
from unimed.structures import Sample

FORMAT = 1
NAME = "manifest.json"
#: Packages whose version may change an answer.
PACKAGES = ("torch", "transformers", "numpy", "scipy", "pillow")


class ManifestError(ValueError):
    """A manifest that cannot be read or repeated; file and remedy are named."""


def sample_digest(sample: Sample) -> str:
    """sha256 of a sample: id, question, answer, images, and where its regions are."""
    digest = hashlib.sha256(repr((sample.sample_id, str(sample.task), sample.conversation)).encode("utf-8", "replace"))
    for image in sample.images:
        digest.update(repr((image.shape, image.dtype.str)).encode() + np.ascontiguousarray(image).tobytes())
    for region in sample.regions:
        digest.update(repr((region.phrase, region.box_xyxy_px, region.presence)).encode("utf-8", "replace"))
        if region.mask is not None:
            digest.update(np.packbits(region.mask).tobytes())
    return digest.hexdigest()


def data_digest(digests: Mapping[str, str]) -> str:
    """sha256 of the digests of the samples, in their order."""
    return hashlib.sha256("\n".join(f"{case} {one}" for case, one in digests.items()).encode()).hexdigest()


@cache
def code() -> dict[str, str]:
    """Version of the package, digest of its source, and versions of what it computes with."""
    root = Path(unimed.version.__file__).parent
    source = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        source.update(f"{path.relative_to(root).as_posix()} {file_digest(path)}\n".encode())
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "unimed": unimed.version.__version__,
        "source": source.hexdigest(),
        "python": platform.python_version(),
        **versions,
    }


def declaration(one: Benchmark) -> dict:
    """A declaration as plain values."""
    return {name: dict(v) if isinstance(v, Mapping) else v for name, v in asdict(one).items() if v not in ("", None)}


def read_manifest(path: str | Path) -> tuple[Path, dict]:
    """(folder of the run, manifest) of a manifest or of the folder it lies in.

    Raises:
        ManifestError: neither, or one of another format.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; `unimed benchmark NAME MODEL --out RUN` writes RUN/{NAME}")
    values = read_json(path, error=ManifestError)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ManifestError(f"{path}: no manifest of format {FORMAT}")
    return path.parent, values


def numbers_of(means: Sequence[Mapping], summary: Mapping) -> dict[str, float | None]:
    """{"kind/task/metric": mean} of `Rows.means`, and the numbers of a scorer, for comparing runs."""
    found = {}
    for line in means:
        key = "/".join(str(line[k]) for k in ("kind", "task", "metric") if line.get(k))
        mean = line["mean"]
        found[key] = float(mean.value if isinstance(mean, Interval) else mean)
    found |= {k: float(v) for k, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def differences(first: Mapping, second: Mapping, predictions: tuple[Mapping, Mapping]) -> list[dict]:
    """A line per thing that should be equal in two runs: what it is, whether it is, and by how much not.

    Args:
        first, second: manifests. predictions: case -> line of both runs.
    """
    lines = []

    def note(what: str, equal: bool, detail: str = "") -> None:
        lines.append({"what": what, "equal": equal, "detail": detail})

    note("data", first["data"]["content"] == second["data"]["content"])
    note("contestant", first["contestant"]["identity"] == second["contestant"]["identity"])
    changed = [name for name in second["code"] if first["code"].get(name) != second["code"][name]]
    note("code", not changed, ", ".join(changed))
    old, new = predictions
    same = sum(old[case] == new.get(case) for case in old)
    note("predictions", same == len(old) == len(new), f"{same} of {len(old)} equal")
    before, after = first["numbers"], second["numbers"]
    worst, where = 0.0, ""
    for name in sorted(set(before) | set(after)):
        a, b = before.get(name), after.get(name)
        gap = 0.0 if a is None and b is None else float("inf") if a is None or b is None else abs(a - b)
        if gap > worst:
            worst, where = gap, name
    note("numbers", worst == 0, f"largest difference {worst:.3g} ({where})" if where else f"{len(before)} equal")
    return lines
