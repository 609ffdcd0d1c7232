"""The wheel in fresh environments: `python tests/fresh_environments.py --python python3.12 --python python3.13`.

For each Python: a wheel of the clone is built and installed with its extras into a new environment, with the newest
packages that the bounds admit, or (`--lowest`, needs `uv`) the oldest; what a user does is done outside the clone
(`installed_package.py`), then tests run against the installed package. Writes `environments.json` with versions, sizes
and seconds. An environment holds about 6 GB where torch brings CUDA; it is removed at the end unless `--keep` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What the tests below need beside the base install.
EXTRAS = "dicom,eval"
TOOLS = ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100"]
#: Tests that read no file of the clone but their own.
TESTS = ["metrics", "losses", "io", "models/test_every_model.py", "commands/test_predict.py", "commands/test_doctor.py"]


def run(command: list, log: Path, **options) -> int:
    """Run a command, its output at the end of `log`; returns the exit code."""
    with log.open("a", encoding="utf-8") as stream:
        print("$", *command, file=stream, flush=True)
        return subprocess.run(list(map(str, command)), stdout=stream, stderr=subprocess.STDOUT, **options).returncode


def build_wheel(folder: Path, log: Path) -> Path:
    """A wheel of what git knows of the clone; an old `build/` beside it can then add nothing."""
    source = folder / "source"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in names:
        if name.startswith(("unimed/", "configs/", "pyproject", "setup.py", "README", "LICENSE")):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, source / name)
    code = run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source], log)
    if code:
        raise SystemExit(f"error: the wheel does not build; see {log}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def lowest(python: str, log: Path, folder: Path) -> Path:
    """Constraints with the oldest version of everything that pyproject.toml names (`uv`, resolution lowest-direct)."""
    target = folder / "lowest.txt"
    extras = [part for extra in EXTRAS.split(",") for part in ("--extra", extra)]
    command = ["uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--python", python, *extras]
    if shutil.which("uv") is None:
        raise SystemExit("error: --lowest needs uv; `pip install uv`")
    if run([*command, "-o", target, ROOT / "pyproject.toml"], log):
        raise SystemExit(f"error: the lower bounds do not fit one another; see {log}")
    return target


def size_of(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def check(python: str, wheel: Path, place: Path, out: Path, oldest: bool, tests: list[str]) -> dict:
    """Install into `place` and try; returns what is written about it."""
    name = f"{Path(python).name}{'-lowest' if oldest else ''}"
    log = out / f"{name}.log"
    log.unlink(missing_ok=True)
    began = time.monotonic()
    interpreter = place / "bin" / "python"
    found: dict = {"python": python, "bounds": "lowest" if oldest else "newest", "log": log.name}
    install = [interpreter, "-m", "pip", "install", "--progress-bar", "off", "--no-cache-dir"]
    if not interpreter.exists():
        if run([python, "-m", "venv", place], log):
            return found | {"failed": "venv"}
        constraints = ["-c", lowest(python, log, place)] if oldest else []
        if run([*install, *constraints, f"{wheel}"], log):
            return found | {"failed": "install"}
        found |= {"base_install_bytes": size_of(place), "base_install_s": round(time.monotonic() - began)}
        if run([*install, *constraints, f"{wheel}[{EXTRAS}]", *TOOLS], log):
            return found | {"failed": "extras"}
    found["bytes"] = size_of(place)
    asked = subprocess.run([interpreter, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True)
    found["packages"] = {one["name"]: one["version"] for one in json.loads(asked.stdout)}
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": f"{place / 'bin'}:{environment['PATH']}"}
    with tempfile.TemporaryDirectory(prefix="unimed-empty-") as empty:
        steps = {
            "script": ["unimed", "--version"],
            "doctor": ["unimed", "doctor"],
            "use": [interpreter, ROOT / "tests" / "installed_package.py", "--train"],
            # Not `-m pytest`, which would put the clone on the path.
            "tests": ["pytest", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml", "-n", "2",
                      "-m", "not slow", *(ROOT / "tests" / name for name in tests)],
        }  # fmt: skip
        for step, command in steps.items():
            before = time.monotonic()
            found[step] = {"code": run(command, log, cwd=empty, env=environment)}
            found[step]["s"] = round(time.monotonic() - before)
            print(f"{name}: {step}: exit code {found[step]['code']}, {found[step]['s']} s", flush=True)
    found["last_line"] = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    failed = [step for step in steps if found[step]["code"]]
    return found | ({"failed": ", ".join(failed)} if failed else {})


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", required=True, help="an interpreter; may be given several times")
    parser.add_argument("--lowest", action="store_true", help="the oldest packages within the bounds")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/environments"), help="folder of logs and results")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="below tests/ (default: those that need no clone)")
    parser.add_argument("--keep", action="store_true", help="leave the environments in --out, and go on with them")
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    written = out / "environments.json"
    results = json.loads(written.read_text()) if written.is_file() else {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="unimed-wheel-") as folder:
        wheel = build_wheel(Path(folder), out / "wheel.log")
        for python in args.python:
            name = f"{Path(python).name}{'-lowest' if args.lowest else ''}"
            place = out / f"venv-{name}"
            try:
                results[name] = check(python, wheel, place, out, args.lowest, args.tests)
            finally:
                if not args.keep:
                    shutil.rmtree(place, ignore_errors=True)
            # Another run may have written in between.
            others = json.loads(written.read_text()) if written.is_file() else {}
            results = {**others, name: results[name]}
            written.write_text(json.dumps(results, indent=2) + "\n")
            verdict = results[name].get("failed")
            failed |= bool(verdict)
            size = results[name].get("bytes", 0) / 1e9
            print(f"{name}: {f'failed: {verdict}' if verdict else 'all well'}, {size:.1f} GB; log {out / name}.log")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
