"""Rooms only look downwards: every import in the package is checked against the plan of the house."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "unimed": {"structures"},
    "structures": {"io"},  # axis letters of a geometry, imported when asked for
    "io": {"structures"},
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
        if top in FORMAT_LIBRARIES:
            assert room == "io", f"{path}: {top} belongs to io"


@pytest.mark.parametrize("path", sorted((ROOT / "unimed").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 500
