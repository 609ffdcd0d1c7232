"""The check of the repository finds what it is for, and the repository passes it."""

import json

import pytest
import repository_check


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(repository_check, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("big.bin", "x" * 600_000, "600000 bytes"),
        ("a.py", "x = 1\n<<<<<<< HEAD\nx = 2\n", "a.py:2: mark of a conflict"),
        ("a.md", "see [there](missing.md) and ![image](none.png)", "dead link to missing.md"),
        ("a.md", "![image](none.png)", "dead link to none.png"),
        ("a.ipynb", json.dumps({"cells": [{"outputs": []}, {"outputs": [1]}]}), "cell 1 has outputs"),
        ("a.md", "`[SEG](x)` [web](https://a.example/b) [own](#part) [file](a.md#part)", None),
        ("tests/golden/a.npz", "x" * 600_000, None),
    ],
)
def test_a_planted_fault_is_named(root, name, content, fault, capsys):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)
    assert repository_check.main([name]) == (fault is not None)
    printed = capsys.readouterr().out
    assert fault is None or fault in printed


def test_the_repository_passes():
    assert repository_check.main([]) == 0
