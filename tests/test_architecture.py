"""Packages only look downwards, and no module reaches itself: every import is counted, those inside functions too."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: From the top to the ground; a package imports from itself and from what stands below it.
LEVELS = [
    ["unimed", "unimed.__main__"],
    ["unimed.commands"],
    ["unimed.serve"],
    ["unimed.engine"],
    ["unimed.tasks"],
    ["unimed.inference"],
    ["unimed.evaluation"],
    ["unimed.losses"],
    ["unimed.models"],
    ["unimed.models.starting"],
    ["unimed.models.checkpoints"],
    ["unimed.models.grounded", "unimed.models.boltzformer", "unimed.models.clip"],
    ["unimed.models.heads", "unimed.models.dialects"],
    ["unimed.models.backbones", "unimed.models.connectors", "unimed.models.lora"],
    ["unimed.models.predictor"],
    ["unimed.models.foreign"],
    ["unimed.models.weights"],
    ["unimed.models.publishing"],
    ["unimed.models.shim", "unimed.models.cards"],
    ["unimed.data"],
    ["unimed.metrics"],
    ["unimed.io"],
    ["unimed.structures", "unimed.chat", "unimed.outputs"],
    [
        "unimed.geometry",
        "unimed.files",
        "unimed.tokens",
        "unimed.registry",
        "unimed.version",
        "unimed.layouts",
        "unimed.workers",
    ],
    [
        "unimed.identity",
        "unimed.locks",
        "unimed.markup",
        "unimed.names",
        "unimed.pickles",
        "unimed.progress",
        "unimed.threads",
    ],
]
FORMAT_LIBRARIES = {"pydicom", "nibabel", "SimpleITK", "highdicom"}
MODEL_LIBRARIES = {"transformers", "peft", "open_clip", "timm"}
FILES = sorted((ROOT / "unimed").rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def level_of(module):
    """(level, place) of the longest listed name that `module` is or lies in."""
    found = [
        (len(name), level, name)
        for level, names in enumerate(LEVELS)
        for name in names
        if module == name or (module.startswith(name + ".") and name != "unimed")
    ]
    assert found, f"{module} has no place in LEVELS"
    _, level, name = max(found)
    return level, name


@functools.cache
def imports(path):
    """(module of the package or foreign library, is it imported when the module is) of every import in a file."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(inner if inner in MODULES else node.module)
    return tuple(found)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_packages_look_downwards(path):
    level, place = level_of(module_name(path))
    for name in imports(path):
        if name.split(".")[0] != "unimed" or name == "unimed":
            continue
        other_level, other_place = level_of(name)
        assert other_place == place or other_level > level, f"{path}: {place} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_foreign_libraries_stay_in_their_package(path):
    package = module_name(path).split(".")[1:2]
    for name in imports(path):
        top = name.split(".")[0]
        if top in MODEL_LIBRARIES:
            assert package == ["models"], f"{path}: {top} belongs to models"
        if top == "mmengine":
            assert package and package[0] in ("registry", "engine", "tasks"), f"{path}: {top} belongs to the engine"
        if top in FORMAT_LIBRARIES:
            assert package == ["io"], f"{path}: {top} belongs to io"


def test_no_module_reaches_itself():
    graph = {name: {other for other in imports(path) if other in MODULES} for name, path in MODULES.items()}
    assert circles(graph) == []


def circles(graph):
    """Strongly connected parts of more than one module (Tarjan)."""
    index, low, stack, on_stack, found = {}, {}, [], set(), []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in on_stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = []
            while True:
                other = stack.pop()
                on_stack.discard(other)
                part.append(other)
                if other == node:
                    break
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_modules_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
