"""Python config files: what one inherits from another, and `KEY=VALUE` options.

A file names the files it inherits from in `_base_` (a path or a list of paths, relative to it) and gives what differs.
Dicts are merged key by key, except where that would mix two things: a dict that names another `type` than the inherited
one, or a data entry with `type` over one with `mixture` and the other way round, takes its place. `_delete_=True` in a
dict does so in any case. `_base_` is also what was inherited: `max_steps = 2 * _base_.max_steps`.
"""

from __future__ import annotations

import ast
import keyword
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mmengine.config import Config, ConfigDict

BASE, DELETE = "_base_", "_delete_"


class ConfigError(ValueError):
    """A config that cannot be read, or a key that is unknown, missing, or of the wrong type."""


#: Where the configs lie: in a wheel inside the package, in a clone beside it.
SHIPPED = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")


def shipped(path: str | Path) -> Path:
    """`path`, or where the current folder has no such `configs/...`, the one that came with the package."""
    path = Path(path)
    if path.parts[:1] != ("configs",) or path.exists():
        return path
    inside = (folder.joinpath(*path.parts[1:]) for folder in SHIPPED)
    return next((file for file in inside if file.is_file()), path)


def read_file(path: str | Path, _inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a python config with all that it inherits.

    Raises:
        ConfigError: a file is missing or cannot be run (file, line and reason are named), or inherits itself.
    """
    path = Path(path) if _inside else shipped(path)
    if not path.is_file():
        named = (
            f"{_inside[-1]}: _base_ names {path}, which does not exist" if _inside else f"config {path} does not exist"
        )
        raise ConfigError(named)
    if path.resolve() in _inside:
        raise ConfigError(f"{path} inherits itself through {BASE}")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a python file: {error}") from error
    inherited: dict[str, Any] = {}
    for name in _bases(tree, path):
        inherited = merge(read_file(path.parent / name, (*_inside, path.resolve())), inherited)
    tree.body = [node for node in tree.body if not _is_base(node)]
    values = {BASE: ConfigDict(inherited), "__file__": str(path)}
    before = set(values)
    try:
        exec(compile(tree, str(path), "exec"), values)
    except Exception as error:
        line = _line(error, str(path))
        raise ConfigError(f"{path}{line}: {type(error).__name__}: {error}") from error
    own = {
        key: value
        for key, value in values.items()
        if key not in before and not key.startswith("__") and not isinstance(value, FunctionType | ModuleType | type)
    }
    for one, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if own.get(one) is not None:
            inherited.pop(other, None)  # the length of a run is given by the one or the other
    return merge(own, inherited)


def _is_base(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == BASE for t in node.targets)


def _bases(tree: ast.Module, path: Path) -> list[str]:
    for node in tree.body:
        if _is_base(node):
            try:
                named = ast.literal_eval(node.value)
            except ValueError as error:
                raise ConfigError(f"{path}: {BASE} is a path or a list of paths, written out") from error
            return [named] if isinstance(named, str) else list(named)
    return []


def _line(error: Exception, path: str) -> str:
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f", line {lines[-1]}" if lines else ""


def merge(own: Mapping[str, Any], inherited: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `inherited`; neither is changed."""
    merged = dict(inherited)
    for key, value in own.items():
        old = inherited.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not _replaces(key, value, old):
            merged[key] = merge(value, old)
        else:
            merged[key] = _without_marks(value)
    return merged


def _replaces(key: str, own: Mapping, old: Mapping) -> bool:
    if own.get(DELETE):
        return True
    if "type" in own and "type" in old:
        # All schedules share the other values, so another type of it is no other thing.
        return own["type"] != old["type"] and key != "schedule"
    return ("type" in own and "mixture" in old) or ("mixture" in own and "type" in old)


def _without_marks(value):
    if isinstance(value, Mapping):
        return {key: _without_marks(inner) for key, inner in value.items() if key != DELETE}
    if isinstance(value, list | tuple):
        return type(value)(_without_marks(inner) for inner in value)
    return value


def parse_options(entries: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as {dotted key: value}.

    A value is written as in Python (`3`, `1e-4`, `None`, `[1, 2]`, `dict(r=4)`); `true`, `false`, `none` and `a,b` are
    understood as well, and anything else is text.

    Raises:
        ConfigError: an entry without "=".
    """
    options = {}
    for entry in entries:
        key, separator, text = entry.partition("=")
        if not separator or not key:
            raise ConfigError(f"--cfg-options takes KEY=VALUE, got {entry!r}")
        options[key] = _value(text.strip())
    return options


def _value(text: str):
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return _literal(ast.parse(text, mode="eval").body)
    except (ValueError, SyntaxError):
        pass
    # Texts without quotes, as shells leave them: [a,b], (a,b), a,b.
    for opening, closing, kind in (("[", "]", list), ("(", ")", tuple)):
        if text.startswith(opening) and text.endswith(closing):
            return kind(_value(part) for part in _split(text[1:-1]))
    parts = _split(text)
    return [_value(part) for part in parts] if len(parts) > 1 else text


def _split(text: str) -> list[str]:
    """Parts between commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "[(") - (sign in "])")
        if sign == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [part for part in (*parts, text[start:].strip()) if part]


def _literal(node: ast.expr):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List | ast.Tuple):
        values = [_literal(element) for element in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict):
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.Name) and node.id.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[node.id.lower()]
    return ast.literal_eval(node)


def apply_options(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with each dotted key replaced; a number in a key is a place in a list.

    Raises:
        ConfigError: a key leads through something that is no dict or list.
    """
    merged: Any = _copied(values)
    for dotted, value in options.items():
        place, parts = merged, dotted.split(".")
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            if isinstance(place, list) and part.isdigit() and int(part) < len(place):
                part = int(part)
            elif not isinstance(place, dict):
                raise ConfigError(f"--cfg-options {dotted}: {'.'.join(parts[:number])} holds no key {part!r}")
            if last:
                old = place[part] if isinstance(place, list) else place.get(part)
                both = isinstance(value, Mapping) and isinstance(old, Mapping)
                place[part] = merge({part: value}, {part: old})[part] if both else value
            else:
                if isinstance(place, dict) and place.get(part) is None:
                    place[part] = {}
                place = place[part]
    return merged


def _copied(value):
    """Dicts and lists anew (tuples become lists), so that options change nobody else's config."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return value


def as_config(values: Mapping[str, Any], filename: str | None) -> Config:
    """The values as mmengine's Config, with attributes and `pretty_text`."""
    config = Config(dict(values))
    object.__setattr__(config, "_filename", filename)
    return config


def python_text(values: Mapping[str, Any]) -> str:
    """Values as a python file that `read_file` reads back, an assignment per key.

    mmengine's `pretty_text` says the same by a formatter of source code, which takes a second per run.
    """
    return "".join(f"{key} = {_python(value, len(key) + 3)}\n" for key, value in values.items())


def _python(value, used: int, depth: int = 0) -> str:
    """A value as python source; what is wider than a line has one entry per line."""
    if not isinstance(value, dict | list | tuple) or not value:
        return repr(value)
    opened, closed = ("(", ")") if isinstance(value, tuple) else ("[", "]")
    if isinstance(value, dict):
        named = all(isinstance(k, str) and k.isidentifier() and not keyword.iskeyword(k) for k in value)
        opened, closed = ("dict(", ")") if named else ("{", "}")
        starts = [f"{k}=" if named else f"{k!r}: " for k in value]
        value = list(value.values())
    else:
        starts = [""] * len(value)
    inner = 4 * (depth + 1)
    parts = [start + _python(one, inner + len(start), depth + 1) for start, one in zip(starts, value, strict=True)]
    lone = "," if opened == "(" and len(parts) == 1 else ""
    line = f"{opened}{', '.join(parts)}{lone}{closed}"
    if used + len(line) <= 119 and "\n" not in line:
        return line
    return f"{opened}\n" + "".join(f"{' ' * inner}{part},\n" for part in parts) + f"{' ' * 4 * depth}{closed}"
