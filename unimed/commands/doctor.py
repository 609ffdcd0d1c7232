"""`unimed doctor`: what is installed, on what machine, and what to do where something is missing."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from unimed.commands.common import DONE, NOTHING, NOTICE, Parser, guarded
from unimed.files import cache_folder, plain

PACKAGE = "unimed"
#: Free space below which training and conversion are likely to run out of it.
_LEAST_FREE_BYTES = 10e9
#: Variables that change what this package does; values of secret ones are never printed.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "UNIMED_CACHE", "UNIMED_DEBUG",
    "UNIMED_PLUGINS", "UNIMED_THREADS",
)  # fmt: skip


def doctor(arguments=None, prog: str | None = None) -> int:
    """Print what is installed and what is wrong; exit code 1 if something needed is missing or does not fit."""
    parser = Parser("What is installed, on what machine, and what to do where something is missing.", prog=prog)
    parser.add_argument("--json", action="store_true", help="as one JSON object, for a report of a fault")
    return guarded(_doctor, parser.parse_args(arguments))


def _doctor(args) -> int:
    found = findings()
    if args.json:
        print(json.dumps(plain(found), indent=2, ensure_ascii=False))
    else:
        print(_text(found))
    return NOTHING if found["problems"] else DONE


def findings() -> dict:
    """Everything the verb prints, as plain values; `problems` are sentences with their remedy."""
    base, extras, problems = _requirements()
    return {
        "unimed": _own_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "devices": _devices(problems),
        "packages": base,
        "extras": extras,
        "sizes": _sizes(),
        "caches": _caches(problems),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "licences": _licenses(),
        "problems": problems,
    }


def _own_version() -> str:
    from unimed.version import __version__

    return f"{__version__} ({Path(__file__).parents[1]})"


def _requirements() -> tuple[dict[str, str], dict[str, dict[str, str]], list[str]]:
    """({package: version} of the base install, {extra: {package: version or ""}}, problems)."""
    from packaging.requirements import Requirement

    try:
        stated = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}, {}, [f"{PACKAGE} is not installed; `pip install -e .` in its folder"]
    base: dict[str, str] = {}
    extras: dict[str, dict[str, str]] = {}
    problems = []
    for text in stated:
        requirement = Requirement(text)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        if requirement.name == PACKAGE:
            continue
        version = _version_of(requirement.name)
        if extra is None:
            base[requirement.name] = version
        else:
            extras.setdefault(extra.group(1), {})[requirement.name] = version
        if not version:
            if extra is None:
                problems.append(
                    f"{requirement.name} is missing; `pip install '{requirement.name}{requirement.specifier}'`"
                )
        elif not requirement.specifier.contains(version, prereleases=True):
            remedy = f"`pip install '{requirement.name}{requirement.specifier}'`"
            problems.append(f"{requirement.name} is {version}, tested were {requirement.specifier}; {remedy}")
    return base, extras, problems


def _sizes() -> dict[str, float]:
    """GB on disk of the base install with all that it needs, and of what of that is CUDA, as their installers noted."""
    from packaging.requirements import Requirement

    sizes: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(PACKAGE, "")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name not in sizes:
            sizes[name] = sum(file.size or 0 for file in found.files or ())
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                plain_name = re.sub(r"[-_.]+", "-", requirement.name).lower()
                waiting += [(plain_name, one) for one in ("", *requirement.extras)]
    cuda = sum(size for name, size in sizes.items() if name.startswith(("nvidia-", "cuda-")) or name == "triton")
    return {"base_gb": round(sum(sizes.values()) / 1e9, 2), "cuda_gb": round(cuda / 1e9, 2)}


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _devices(problems: list[str]) -> list[str]:
    try:
        import torch
    except Exception as error:  # a broken install is what this verb is for
        problems.append(f"torch cannot be imported: {error}")
        return []
    devices = [f"cpu, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            held = torch.cuda.get_device_properties(number)
            devices.append(f"cuda:{number}, {held.name}, {held.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        problems.append(
            f"nvidia-smi is there but torch {torch.__version__} sees no GPU; install the torch wheel of your driver"
        )
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _caches(problems: list[str]) -> dict[str, dict]:
    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    caches = {}
    for name, folder in (("unimed", cache_folder()), ("hugging face", hub)):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        caches[name] = {
            "folder": str(folder),
            "held_bytes": sum(
                file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink()
            )
            if folder.is_dir()
            else 0,
            "free_bytes": free,
        }
        if not os.access(existing, os.W_OK):
            problems.append(f"{existing} cannot be written; name another folder in UNIMED_CACHE or HF_HOME")
        if free < _LEAST_FREE_BYTES:
            problems.append(f"{existing}: {free / 1e9:.1f} GB left; checkpoints and conversions need more")
    return caches


def _licenses() -> dict[str, str]:
    from unimed.data.packages import manifest

    return {name: pinned.license for name, pinned in sorted(manifest().items())}


def _text(found: dict) -> str:
    memory = f", {found['memory_gb']} GB" if found["memory_gb"] else ""
    lines = [
        f"unimed {found['unimed']}",
        f"python {found['python']} ({sys.executable}), {found['system']}, {found['processors']} processors{memory}",
        *(f"device: {device}" for device in found["devices"]),
        "base:   " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in found["packages"].items()),
    ]
    size = found["sizes"]
    lines.append(f"size of the base install: {size['base_gb']} GB, {size['cuda_gb']} GB of it CUDA")
    if size["cuda_gb"] and not any(device.startswith("cuda") for device in found["devices"]):
        lines.append("CUDA is installed and no GPU is there: PyTorch's CPU build is far smaller (docs/install.md)")
    for extra, packages in sorted(found["extras"].items()):
        missing = [name for name, version in packages.items() if not version]
        state = f"missing {', '.join(missing)}: pip install '{PACKAGE}[{extra}]'" if missing else "all there"
        lines.append(f"extra {extra}: {state}")
    for name, cache in found["caches"].items():
        held, free = cache["held_bytes"] / 1e9, cache["free_bytes"] / 1e9
        lines.append(f"cache of {name}: {cache['folder']}, {held:.2f} GB held, {free:.0f} GB free")
    lines += [f"{name}={value}" for name, value in found["environment"].items()]
    lines.append(
        "data that is fetched, and its licence: " + "; ".join(f"{n} {v}" for n, v in found["licences"].items())
    )
    lines += [f"problem: {problem}" for problem in found["problems"]] or ["no problem found"]
    return "\n".join([*lines, NOTICE])
