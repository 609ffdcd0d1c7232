"""Files whole or not at all, lines of JSON, paths that stay inside."""

import errno
import json
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimed import files
from unimed.files import (
    append_json_line,
    atomic_folder,
    cache_folder,
    read_json,
    read_json_lines,
    read_lines,
    resolve_inside,
    write_atomic,
    write_json_lines,
)

SEPARATORS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\r\n", "\ud800", "\0"]


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], indirect=True)
def test_permissions_follow_the_umask(tmp_path, umask):
    def private(path):
        path.write_text("x")
        path.chmod(0o600)

    assert mode(write_atomic(tmp_path / "f.json", private)) == 0o666 & ~umask
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "inner").mkdir(mode=0o700)
        private(folder / "inner" / "weights")
    assert mode(tmp_path / "model") == mode(tmp_path / "model" / "inner") == 0o777 & ~umask
    assert mode(tmp_path / "model" / "inner" / "weights") == 0o666 & ~umask
    private(tmp_path / "f")
    files.share(tmp_path / "f")
    assert mode(tmp_path / "f") == 0o666 & ~umask


def test_what_is_there_stays_when_writing_fails(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").write_text("before")

    def broken(path):
        path.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomic(tmp_path / "a.txt", broken)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "set", replace=True) as folder:
        broken(folder / "a")
    with pytest.raises(FileExistsError, match="already there"), atomic_folder(tmp_path / "set"):
        pass
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "set" / "a").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "set"]
    with atomic_folder(tmp_path / "set", replace=True) as folder:
        (folder / "b").write_text("after")
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "set"]


def test_a_folder_that_another_process_made_meanwhile_is_kept(tmp_path):
    with pytest.raises(FileExistsError, match="already there"), atomic_folder(tmp_path / "set") as folder:
        (folder / "mine").write_text("")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "theirs").write_text("")
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


KILLED = """
import os, signal, sys
from pathlib import Path
from unimed.files import atomic_folder, write_atomic
def die(path):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "file":
    write_atomic(Path(sys.argv[1], "a.json"), die)
with atomic_folder(Path(sys.argv[1], "model")) as folder:
    die(folder / "weights")
"""


def test_left_overs_of_killed_runs_are_removed(tmp_path):
    for what in ("file", "folder"):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), what], check=False)
    assert len(list(tmp_path.iterdir())) == 1, "the second run removes what the first one left"
    (tmp_path / f".unfinished-00000000-1-{'0' * 8}.json").write_text("of another machine, just now")
    ours = tmp_path / f".unfinished-{files.this_machine()}-{os.getpid()}-{'0' * 8}.json"
    ours.write_text("of a process that runs")
    old = tmp_path / f".unfinished-00000000-2-{'0' * 8}-model"
    old.mkdir()
    os.utime(old, (1, 1))
    write_atomic(tmp_path / "b.json", lambda path: path.write_text("{}"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f".unfinished-00000000-1-{'0' * 8}.json", ours.name, "b.json"]
    )


def test_the_suffix_is_kept_and_long_names_are_written(tmp_path):
    seen = []
    for name in ("a.nii.gz", "1.2.840.113619.2.png", "x" * 240 + ".json", "x." + "y" * 240):
        write_atomic(tmp_path / name, lambda path: seen.append(path.name) or path.write_text(""))
    assert seen[0].endswith(".nii.gz") and seen[1].endswith(".png") and seen[2].endswith(".json")


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path))
    assert cache_folder("converted") == tmp_path / "converted"
    monkeypatch.delenv("UNIMED_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "unimed")


texts = st.lists(st.one_of(st.text(), st.sampled_from(SEPARATORS), st.characters()), max_size=6).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(texts, texts, max_size=3), max_size=4))
def test_any_text_comes_back_from_lines_of_json(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_json_lines(path, rows)
    assert [row for _, row in read_json_lines(path)] == rows
    append_json_line(path, {"last": "\u2028"})
    assert [row for _, row in read_json_lines(path)] == [*rows, {"last": "\u2028"}]


def test_byte_order_marks_and_carriage_returns(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert list(read_json_lines(path)) == [(1, {"a": 1}), (3, {"a": 2})]
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes("\ufeffone\u2028two\r\n\nthree".encode())
    assert read_lines(path) == ["one\u2028two", "three"]


@pytest.mark.parametrize(
    "content", [b'{"a": 1}\n{', b"{}\n[]", b"{}\n\xff\n", b"{}\n" + b"[" * 100000, b'{}\n"x"', "{}\n".encode("utf-16")]
)
def test_a_line_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(KeyError, match=r"a\.jsonl:[12]: (not JSON|expected one JSON object)"):
        list(read_json_lines(path, error=KeyError))


@pytest.mark.parametrize(
    ("torn", "kept"), [('{"a": 1}\n{"a": 2', 1), ('{"a": 1}\n{"a": 2}', 2), ("", 0), ('{"a"', 0), ('{"a": "\u00e4', 0)]
)
def test_a_torn_last_line_does_not_spoil_the_next(tmp_path, torn, kept):
    path = tmp_path / "a.jsonl"
    path.write_bytes(torn.encode()[:-1] if torn.endswith("\u00e4") else torn.encode())
    assert len(list(read_json_lines(path, torn_end=True))) == kept
    append_json_line(path, {"a": 3})
    assert [row["a"] for _, row in read_json_lines(path)] == [*range(1, kept + 1), 3]


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.png").write_text("a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.png").write_text("secret")
    (tmp_path / "data-2").mkdir()
    (tmp_path / "data-2" / "a.png").write_text("neighbor")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    (tmp_path / "data" / "inner").symlink_to(tmp_path / "data" / "images")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data" / "loop")
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("name", ["images/a.png", "inner/a.png", "not there.png", "a:b.png", "a..b/...png", "./images"])
@pytest.mark.parametrize("root", ["data", "alias"])
def test_names_inside(tree, root, name):
    assert resolve_inside(tree / root, name) == tree / root / name


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere/secret.png",
        "images/../../elsewhere/secret.png",
        "images/../images/a.png",
        "/etc/passwd",
        "link.png",
    ]
    + [
        "link.png",
        "link/secret.png",
        "",
        "a\0b",
        None,
        7,
        "..\\elsewhere",
        "C:\\x.png",
        "\\\\server\\x",
        "..",
        "../data-2/a.png",
    ],
)
def test_names_that_leave(tree, name):
    with pytest.raises(KeyError):
        resolve_inside(tree / "data", name, error=KeyError)


@pytest.mark.parametrize("name", ["x" * 5000, "loop/a.png", "images/a.png/b"])
def test_impossible_names_are_no_traceback(tree, name):
    try:
        resolve_inside(tree / "data", name)
    except ValueError:
        pass


def test_roots_that_the_user_names(tree, monkeypatch):
    secret = tree / "elsewhere" / "secret.png"
    assert resolve_inside(tree / "data", str(secret), roots=[tree / "elsewhere"]) == secret
    assert resolve_inside(tree / "data", "link.png", roots=[tree / "elsewhere"]).read_text() == "secret"
    with pytest.raises(ValueError, match="leads out of"):
        resolve_inside(tree / "data", "/etc/passwd", roots=[tree / "elsewhere"])
    monkeypatch.setenv("UNIMED_DATA_ROOTS", f"{tree / 'elsewhere'}{os.pathsep}")
    assert resolve_inside(tree / "data", "../elsewhere/secret.png").read_text() == "secret"


def test_nan_and_surrogates_are_json(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl", [{"a": float("nan"), "b": "\udc00"}])
    assert json.loads(path.read_bytes()) == {"a": None, "b": "\udc00"}


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path):
    previous = tmp_path / f".unfinished-{files.this_machine()}-999999999-{'0' * 8}-previous-set"
    previous.mkdir()
    (previous / "a").write_text("before")
    assert files.remove_left_overs(tmp_path) == []
    assert (tmp_path / "set" / "a").read_text() == "before" and not previous.exists()


def test_a_scratch_folder_is_removed(tmp_path):
    with pytest.raises(RuntimeError), files.scratch_folder(tmp_path) as folder:
        (folder / "part").mkdir()
        (folder / "part").rename(tmp_path / "part")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_surrogates_are_written(tmp_path):
    assert files.write_text(tmp_path / "a", "a\ud800\n").read_bytes() == "a\ufffd\n".encode()


def test_a_full_disk_is_found_among_causes_that_go_round_in_a_circle():
    from unimed.files import is_of_the_disk

    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__context__ = second, first
    assert not is_of_the_disk(first) and not is_of_the_disk(None)
    full = OSError(errno.ENOSPC, "full")
    outer = RuntimeError("cannot be written")
    outer.__cause__ = full
    assert is_of_the_disk(outer) and not is_of_the_disk(OSError(errno.ENOENT, "nothing there"))
