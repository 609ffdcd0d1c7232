"""Places of results: what is refused before any work, and what errors of the system are called."""

import errno
import os

import pytest

from unimed.outputs import explained, refuse_unwritable


@pytest.fixture
def there(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("x")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_places_where_results_can_be_made_are_left_as_they_were(there):
    before = sorted(there.rglob("*"))
    places = [
        ("full", "folder"), ("new", "folder"), ("a/b/c", "folder"), ("file", "file"), ("a/b.json", "file"),
        ("empty", "new"), ("a.py", "new"),
    ]  # fmt: skip
    for name, kind in places:
        refuse_unwritable(there / name, kind)
    assert sorted(there.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("file", "folder", "is a file, the results need a folder"),
        ("file/a/b", "folder", "file is a file, not a folder"),
        ("file/a.json", "file", "file is a file, not a folder"),
        ("full", "file", "is a folder; name the file"),
        ("full", "new", "is already there"),
        ("file", "new", "is already there"),
    ],
)
def test_other_places_are_refused(there, name, kind, words):
    with pytest.raises(OSError, match=words):
        refuse_unwritable(there / name, kind)


def test_a_folder_nobody_may_write_in_is_found_by_trying(there, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(there / "full"))

    monkeypatch.setattr("pathlib.Path.touch", refused)  # root may write everywhere
    with pytest.raises(
        PermissionError, match=r"full/a.json/b: nothing can be written there \(permission denied\); choose"
    ):
        refuse_unwritable(there / "full" / "a.json" / "b")


def test_errors_of_the_system_name_the_place_and_no_number(there):
    def error_of(work):
        with pytest.raises(OSError) as raised:
            work()
        return explained(raised.value)

    assert error_of(lambda: (there / "gone").read_text()) == f"{there / 'gone'}: no such file or folder"
    assert "is a file, not a folder" in error_of(lambda: (there / "file" / "a").mkdir())
    assert "is a file, not a folder" in error_of(lambda: (there / "file").mkdir(exist_ok=True))
    assert "is already there" in error_of(lambda: (there / "empty").mkdir())
    assert "is a folder" in error_of(lambda: (there / "empty").read_bytes())
    denied = PermissionError(errno.EACCES, "Permission denied", f"{there}/.unfinished-0-1-2-a/b")
    assert explained(denied).startswith(f"{there}: permission denied")
    assert explained(OSError(errno.ENOSPC, "full", str(there))) == f"the disk is full: {there}"
    assert explained(OSError(errno.EIO, os.strerror(errno.EIO), "a.png")) == "a.png: input/output error"
    assert not any(map(explained, (OSError("told"), ValueError("told"), OSError(errno.EIO, "told"))))
