"""A cohort ends with every row exactly once, whatever happens to its processes, its disk and its sources."""

import json
import os

import pytest
from cohorts import DigestOf, manifest, run, tree

from unimed.files import read_json_lines
from unimed.inference.cohort.records import CohortError
from unimed.locks import FolderInUseError, FolderLock


def rows(folder):
    found = [row for path in sorted((folder / "rows").glob("*.jsonl")) for _, row in read_json_lines(path)]
    return {row["number"]: row for row in found}


@pytest.fixture
def table(tmp_path):
    return manifest(tmp_path / "in", 11)


def digest_of(tmp_path, name="log", **options):
    return DigestOf(str(tmp_path / name), **options)


def test_rows_and_files_in_parts_by_order_alone(table, tmp_path):
    report = run(tmp_path / "out", [table], digest_of(tmp_path), part_rows=4, form="jsonl")
    assert (report.rows, report.finished, report.failed, report.exit_code) == (11, 11, 0, 0)
    assert sorted(path.name for path in (tmp_path / "out" / "rows").iterdir()) == [
        "part-000000.jsonl", "part-000001.jsonl", "part-000002.jsonl",
    ]  # fmt: skip
    found = rows(tmp_path / "out")
    assert list(found) == list(range(11)) and found[9]["source"] == "files/9.png"
    assert found[9]["row"]["answers"][0]["question"] == "is it 9?"
    (file,) = found[9]["files"]
    assert (tmp_path / "out" / file).read_text() == found[9]["texts"][0]


def test_processes_give_the_bytes_of_one_also_where_they_are_killed(table, tmp_path):
    one, killed = digest_of(tmp_path, "one.log"), digest_of(tmp_path, "killed.log", kills={2: 1, 6: 2})
    run(tmp_path / "one", [table], one, part_rows=3, form="jsonl")
    (tmp_path / "killed.log").touch()
    report = run(tmp_path / "two", [table], killed, part_rows=3, form="jsonl", workers=2)
    assert report.exit_code == 0 and tree(tmp_path / "one") == tree(tmp_path / "two")
    assert sorted(one.worked()) == list(range(11))
    assert sorted(killed.worked()) == list(range(11))  # what was finished is not worked on again


def test_a_record_over_which_processes_die_is_a_row_with_the_reason(table, tmp_path):
    (tmp_path / "log").touch()
    report = run(tmp_path / "out", [table], digest_of(tmp_path, kills={5: 99}), part_rows=4, form="jsonl", workers=2)
    assert (report.finished, report.failed, report.exit_code) == (11, 1, 2)
    assert "3 processes died over it" in rows(tmp_path / "out")[5]["error"]


@pytest.mark.parametrize("place", [0, 3, 4, 10])
def test_an_interrupted_run_goes_on_at_any_record(table, tmp_path, place):
    expected = tmp_path / "whole"
    run(expected, [table], digest_of(tmp_path, "other"), part_rows=4, form="jsonl")
    stopped = digest_of(tmp_path, interrupt=place)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        run(tmp_path / "out", [table], stopped, part_rows=4, form="jsonl")
    assert stopped.worked() == list(range(place))
    (tmp_path / "log.mended").touch()
    report = run(tmp_path / "out", [table], stopped, part_rows=4, form="jsonl")
    assert report.exit_code == 0 and report.skipped == place
    assert stopped.worked() == list(range(11)) and tree(expected) == tree(tmp_path / "out")


def test_a_full_disk_stops_the_job_with_what_is_missing(table, tmp_path):
    run(tmp_path / "whole", [table], digest_of(tmp_path, "other"), part_rows=4, form="jsonl")
    report = run(tmp_path / "out", [table], digest_of(tmp_path, full=6), part_rows=4, form="jsonl")
    assert "No space left" in report.stopped and report.missing == "4-10" and report.finished == 4
    missing = [row["number"] for _, row in read_json_lines(tmp_path / "out" / "missing.jsonl")]
    assert missing == [4, 5, 6, 7, 8, 9, 10]
    (tmp_path / "log.mended").touch()
    again = run(tmp_path / "out", [table], digest_of(tmp_path, full=6), part_rows=4, form="jsonl")
    assert again.exit_code == 0 and tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert digest_of(tmp_path).worked() == list(range(11))


def test_failed_records_are_rows_and_are_tried_again(table, tmp_path):
    gone = table.parent / "files" / "7.png"
    kept = gone.read_bytes()
    gone.unlink()

    class Strict(DigestOf):
        def __call__(self, record, path, folder):
            path.stat()
            return super().__call__(record, path, folder)

    report = run(tmp_path / "out", [table], Strict(str(tmp_path / "log")), part_rows=4, form="jsonl")
    assert (report.failed, report.exit_code) == (1, 2)
    row = rows(tmp_path / "out")[7]
    assert row["error"].startswith("FileNotFoundError") and row["files"] == []
    gone.write_bytes(kept)
    report = run(tmp_path / "out", [table], Strict(str(tmp_path / "log")), part_rows=4, form="jsonl")
    assert report.exit_code == 0 and rows(tmp_path / "out")[7]["error"] is None
    assert digest_of(tmp_path).worked() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 7]
    # What fails later leaves no answer to its earlier content behind.
    assert len(list((tmp_path / "out" / "parts" / "000001").glob("00000007*"))) == 1
    gone.unlink()
    run(tmp_path / "out", [table], Strict(str(tmp_path / "log")), part_rows=4, form="jsonl")
    assert not list((tmp_path / "out" / "parts" / "000001").glob("00000007*"))


def test_a_replaced_source_is_worked_on_again_and_nothing_else(table, tmp_path):
    run(tmp_path / "out", [table], digest_of(tmp_path), part_rows=4, form="jsonl")
    before = rows(tmp_path / "out")
    (table.parent / "files" / "2.png").write_bytes(b"another")
    os.utime(table.parent / "files" / "3.png", ns=(1, 1))  # touched, and the same
    report = run(tmp_path / "out", [table], digest_of(tmp_path), part_rows=4, form="jsonl")
    after = rows(tmp_path / "out")
    assert report.skipped == 10 and digest_of(tmp_path).worked()[11:] == [2]
    assert [number for number in before if before[number] != after[number]] == [2]


def test_other_sources_settings_or_owners_are_refused(table, tmp_path):
    run(tmp_path / "out", [table], digest_of(tmp_path), part_rows=4, form="jsonl")
    with pytest.raises(CohortError, match="results of other settings .part_rows: 4 -> 5"):
        run(tmp_path / "out", [table], digest_of(tmp_path), part_rows=5, form="jsonl")
    with open(table, "a") as stream:
        stream.write("files/0.png,more\n")
    before = tree(tmp_path / "out")
    with pytest.raises(CohortError, match=r"record 11 was 'nothing', now 'files/0.png'"):
        run(tmp_path / "out", [table], digest_of(tmp_path), part_rows=4, form="jsonl")
    assert tree(tmp_path / "out") == before
    assert run(tmp_path / "out", [table], digest_of(tmp_path), part_rows=4, form="jsonl", restart=True).rows == 12
    with FolderLock(tmp_path / "out", "something"), pytest.raises(FolderInUseError):
        run(tmp_path / "out", [table], digest_of(tmp_path), part_rows=4, form="jsonl")


def test_rows_as_parquet(table, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run(tmp_path / "out", [table], digest_of(tmp_path), part_rows=4, form="parquet")
    found = parquet.read_table(tmp_path / "out" / "rows").to_pylist()
    assert [row["number"] for row in found] == list(range(11)) and found[3]["error"] is None
    assert json.loads(found[3]["row"])["answers"][0]["text"] == found[3]["texts"][0]


def test_a_folder_inside_its_own_sources_is_refused(table, tmp_path):
    with pytest.raises(CohortError, match="results would be sources"):
        run(tmp_path / "in" / "out", [tmp_path / "in"], digest_of(tmp_path), form="jsonl")


def test_only_the_owner_reads_records_for_addresses_hold_keys(table, tmp_path):
    run(tmp_path / "out", [table], digest_of(tmp_path), form="jsonl")
    assert (tmp_path / "out" / "records.jsonl").stat().st_mode & 0o077 == 0
