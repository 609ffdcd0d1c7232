"""Pools of wordings: our own, or those of a user's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unimed.files import read_json


class TemplateError(ValueError):
    """A file of question pools that cannot be used."""


def load_pools(path: str | None, known: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """`known`, with the pools of a JSON file {pool name: [sentences]} in their place.

    Raises:
        FileNotFoundError: no such file.
        TemplateError: an unknown pool, an empty one, or a sentence without `{}` where a subject goes.
    """
    if path is None:
        return dict(known)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of question pools")
    given = read_json(path, error=TemplateError)
    for name, pool in given.items():
        if name not in known:
            raise TemplateError(f"{path}: unknown pool {name!r}; known are {', '.join(known)}")
        if not isinstance(pool, list) or not pool:
            raise TemplateError(f"{path}: pool {name!r} must be a list of sentences")
        for number, sentence in enumerate(pool):
            if "{}" in known[name][0] and "{}" not in sentence:
                raise TemplateError(f"{path}: pool {name!r}, entry {number}: {{}} is missing, the subject has no place")
    return {**known, **given}
