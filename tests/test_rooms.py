"""Rooms only look downwards: every import in the package is checked against the plan of the house."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "unimed": {"structures", "models"},
    "structures": {"io"},  # axis letters of a geometry and `Prediction.save`, imported when asked for
    "registry": set(),
    "tokens": set(),
    "chat": {"tokens", "structures"},
    "io": {"structures"},
    "data": {"structures", "io", "chat", "tokens", "registry"},
    "losses": {"structures", "models"},  # the one place where box forms are converted
    "evaluation": {"structures"},
    "models": {"structures", "tokens", "chat", "io", "evaluation"},  # a calibration is applied to what a model says
    "tasks": {"models", "losses", "evaluation", "registry", "structures"},
    "engine": {"tasks", "data", "registry", "structures", "io", "evaluation"},
    "inference": {"models", "io", "structures", "data", "evaluation", "tokens"},
    "serve": {"inference", "structures", "io"},
    "cli": {"structures", "io", "data", "models", "engine", "inference", "serve", "evaluation"},
}
FORMAT_LIBRARIES = {"pydicom", "nibabel", "SimpleITK", "highdicom"}


def room_of(path):
    parts = path.relative_to(ROOT / "unimed").with_suffix("").parts
    return "unimed" if parts == ("__init__",) else parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", sorted((ROOT / "unimed").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_plan(path):
    room = room_of(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "unimed" and rest and rest[0] != room:
            assert rest[0] in MAY_IMPORT[room], f"{path}: room {room!r} must not import {name}"
        if top in ("transformers", "peft", "open_clip", "timm"):
            assert room in ("models", "unimed"), f"{path}: {top} belongs to models"
        if top == "mmengine":
            assert room in ("registry", "engine", "tasks"), f"{path}: mmengine belongs to registry, engine and tasks"
        if top in FORMAT_LIBRARIES:
            assert room == "io", f"{path}: {top} belongs to io"


@pytest.mark.parametrize("path", sorted((ROOT / "unimed").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 500
