"""Names of results: readable, stable, in their folder, and one per source."""

import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimed import names
from unimed.names import MAX_BYTES, ResultNames, distinct_names, result_name, safe_name, same_on_disk, source_of

SUFFIXES = ["", ".png", ".PNG", ".dcm", ".nii.gz", ".nii", ".jpg", ".tar.gz", ".1", ".json"]
PARTS = ["1.2.840.1", "1.2.840.2", "a", "A", "a-b", "ä", "a\u0308", "ß", "ss", "K", "\u212a", "con", "a:b", "..x"]
PARTS += ["a\nb", "a\u202eb", "x" * 120, "scan 1 ", "a-mask0", "image"]

parts = st.one_of(
    st.sampled_from(PARTS), st.text(max_size=12).filter(lambda text: "/" not in text and "\0" not in text)
).filter(lambda text: text not in ("", ".", ".."))
paths = st.tuples(st.lists(parts, max_size=2), parts, st.sampled_from(SUFFIXES)).map(
    lambda p: "/data/" + "/".join([*p[0], p[1] + p[2]])
)


def is_safe(name):
    assert name and name == safe_name(name) and "/" not in name and "\\" not in name
    assert not name.startswith(".") and len(name.encode()) <= MAX_BYTES and name.isprintable()


@settings(max_examples=80, deadline=None)
@given(st.lists(paths, min_size=2, max_size=8, unique=True), st.booleans())
def test_sources_never_share_a_name(tmp_path_factory, sources, below):
    folder = tmp_path_factory.mktemp("out")
    given = ResultNames(folder, "/data" if below else None).all(sources)
    for name in given:
        is_safe(name)
    files = {os.path.realpath(source.encode("utf-8", "surrogateescape")) for source in sources}
    assert len({same_on_disk(name) for name in given}) == len(files)
    # The same ones again, one by one, in another order and by another object.
    again = ResultNames(folder, "/data" if below else None)
    assert [again(source) for source in reversed(sources)] == given[::-1]


@settings(max_examples=80, deadline=None)
@given(st.lists(paths, min_size=2, max_size=8, unique=True))
def test_published_names_are_distinct(sources):
    given = distinct_names(sources)
    assert list(given) == sources
    assert len({same_on_disk(name) for name in given.values()}) == len(sources)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("1.2.840.1.dcm", "1.2.840.1"), ("scan.nii.gz", "scan"), ("a/b.v2.png", "b.v2"), (".png", "_png"), ("x", "x"),
        ("Röntgen Thorax.jpg", "Röntgen Thorax"), ("胸部.dcm", "胸部"), ("series_folder", "series_folder"),
        ("aux.png", "_aux"), ("a\tb\u202e.png", "a_b_"), ("Con.1.dcm", "_Con.1"),
    ],
)  # fmt: skip
def test_plain_names_are_readable(source, name):
    assert result_name(source) == name


def test_places_below_a_root():
    assert result_name("/data/p1/ct/scan.nii.gz", "/data") == "p1-ct-scan"
    assert result_name("/data", "/data") == "data"
    assert result_name("/elsewhere/a.png", "/data") == "a"


def test_what_tells_sources_apart_is_readable(tmp_path):
    names = ResultNames(tmp_path)
    given = names.all(["/d/a.png", "/d/a.dcm", "/d/A.png", "/e/a.png", "/f/e/a.png"])
    assert given == ["a", "a.dcm", "A.png", "e-a", "f-e-a"]
    assert names("/d/a.png", "1") == "a-1" and names("/d/a.png", "2") == "a-2"
    assert names(b"\x01\x02\x03\x04\x05") == "image-01020304"
    assert names("/d/x.png", called="first") == "first" and names("/d/y.png", called="first").startswith("first-")


def test_files_that_are_there_are_not_replaced(tmp_path):
    (tmp_path / "A.JSON").write_text("somebody's")
    (tmp_path / "b.nii.gz").write_text("somebody's")
    assert ResultNames(tmp_path).all(["/d/a.png", "/d/b.png", "/d/c.png"]) == ["a.png", "b.png", "c"]
    result_of(tmp_path, "/d/c.png")
    assert ResultNames(tmp_path)("/d/c.png") == "c"


def test_further_files_of_a_result_are_its_own(tmp_path):
    assert ResultNames(tmp_path).all(["/d/a.png", "/d/a-mask0.png"])[1] != "a-mask0"


def result_of(folder, source, text="{}", **options):
    """What a command does: a name, and a JSON that keeps whose it is."""
    name = ResultNames(folder)(source, **options)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"text": text, "source_id": source_of(folder, name)}))
    return name


def forget():
    """Another process: what this one gave is not known to it."""
    names._given.clear()


def test_another_process_knows_whose_a_result_is(tmp_path):
    sources = ["/d/a.png", "/d/a.dcm", "/d/A.png", "/e/a.png"]
    given = []
    for source in sources:
        given.append(result_of(tmp_path, source))
        forget()
    assert given == ["a", "a.dcm", "A.png", "e-a"]
    for source, name in zip(sources[::-1], given[::-1], strict=True):
        assert result_of(tmp_path, source) == name
        forget()
    assert "/d/" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_another_process_knows_the_cases_of_a_run(tmp_path):
    given = ResultNames(tmp_path).all(["/d/a.png", "/d/a.dcm"])
    rows = [{"case": name, "source_id": source_of(tmp_path, name)} for name in given]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"case": "tor')
    forget()
    assert ResultNames(tmp_path).all(["/d/a.dcm", "/d/a.png", "/e/a.png"]) == ["a.dcm", "a", "a.png"]


def test_a_folder_that_was_emptied_starts_anew(tmp_path):
    result_of(tmp_path / "out", "/d/a.png")
    assert ResultNames(tmp_path / "out")("/d/b.png") == "b" and ResultNames(tmp_path / "out")("/d/b.dcm") == "b.dcm"
    shutil.rmtree(tmp_path / "out")
    assert ResultNames(tmp_path / "out")("/d/a.dcm") == "a"
