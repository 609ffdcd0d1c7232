"""The wheel holds all that a user outside a clone needs, and runs from there."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what the wheel holds, and nothing of the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    if not any(names):
        pytest.skip("not a git checkout")
    for name in names:
        if name.startswith(("unimed/", "configs/", "pyproject", "setup.py", "README", "LICENSE")):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", str(folder), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_configs_tables_and_types(installed):
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py")}
    there = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {f"unimed/{name}" for name in shipped} <= there
    tracked = subprocess.run(["git", "ls-files", "unimed"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert {name for name in tracked if (ROOT / name).is_file()} <= there


@pytest.mark.slow
def test_verbs_and_configs_work_outside_a_clone(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, str(ROOT / "tests" / "installed_package.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    place, verbs, configs = (line.partition(": ")[2] for line in done.stdout.splitlines())
    assert place.startswith(str(installed)) and int(verbs) > 30 and int(configs) > 20


def test_every_extra_that_an_error_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set()
    for path in (ROOT / "unimed").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named |= {part.split("]")[0] for part in text.split("unimed[")[1:]}
    assert named and named <= set(extras)
