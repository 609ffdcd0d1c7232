"""Content decides, not names and times."""

import os
from pathlib import Path

import numpy as np
import pytest

from unimed.identity import content_digest, identity_of


def test_folders_are_told_by_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "x").write_text("1")
        (tmp_path / name / ".hidden").write_text(name)
    assert content_digest(tmp_path / "a") == content_digest(tmp_path / "b")
    before = content_digest(tmp_path / "a")
    status = (tmp_path / "a" / "inner" / "x").stat()
    (tmp_path / "a" / "inner" / "x").write_text("2")
    os.utime(tmp_path / "a" / "inner" / "x", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_digest(tmp_path / "a") != before
    (tmp_path / "b" / "inner" / "x").rename(tmp_path / "b" / "inner" / "y")
    assert content_digest(tmp_path / "b") not in (before, content_digest(tmp_path / "a"))
    assert content_digest(tmp_path / "none") == "missing"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": "1"}), ({"a": [1, 2]}, {"a": [2, 1]}), ({"a": None}, {}), ([["a"], "b"], ["a", ["b"]]),
        (np.zeros(4, np.uint8), np.zeros((2, 2), np.uint8)), (np.zeros(2, np.int8), np.zeros(2, np.uint8)),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}), (1, True), ("a", ["a"]), (0.0, -0.0),
    ],
)  # fmt: skip
def test_different_values_differ(one, other):
    assert identity_of(one) != identity_of(other)
    assert identity_of(one) == identity_of(one)


def test_files_count_by_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    assert identity_of({"x": tmp_path / "a"}) == identity_of({"x": str(tmp_path / "b")})
    assert identity_of(Path(tmp_path / "a")) != identity_of("same")
