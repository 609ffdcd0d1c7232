"""Texts that a tokenizer is learnt from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from unimed.files import read_json_lines


def texts_of(texts: Iterable[str] | str | Path) -> list[str]:
    """Texts as they are, or the questions and answers of a file of records (one JSON object per line).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no text.
    """
    if not isinstance(texts, (str, Path)):
        return list(texts)
    path = Path(texts)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of records; `tools/prepare_data.py sample` makes the sample set")
    records = [record for _, record in read_json_lines(path)]
    found = [str(record[key]) for record in records for key in ("question", "answer") if record.get(key)]
    if not found:
        raise ValueError(f"{path}: no record has a question or an answer")
    return found
