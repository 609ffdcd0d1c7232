"""Sources of every kind become records in a fixed order; what may not be read is a record with the reason."""

import io
import json
import tarfile
from dataclasses import asdict, replace

import fsspec
import numpy as np
import pytest
from cohorts import DigestOf, http_server, manifest, run, tree
from small_volumes import grid, save, slices

from unimed.inference.cohort.manifests import ManifestError
from unimed.inference.cohort.plan import Part, make_plan, read_part
from unimed.inference.cohort.records import CohortError, CohortRecord, find_records
from unimed.io.remote import (
    UnreachableError,
    address_key,
    file_system,
    read_range,
    redacted,
    retried,
    without_query,
)


def records(*words, **options):
    return list(find_records([str(word) for word in words], **options))


def shard(path, names):
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return path


def test_tables_of_each_kind_name_the_same_records(tmp_path):
    table = manifest(tmp_path, 3)
    rows = [{"path": f"files/{n}.png", "text": f"is it {n}?"} for n in range(3)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "list.tsv").write_text(table.read_text().replace(",", "\t"))
    found = records(table)
    assert [record.source for record in found] == ["files/0.png", "files/1.png", "files/2.png"]
    assert found[2].texts == ("is it 2?",) and found[2].name == "00000002-2"
    assert records(tmp_path / "list.jsonl") == records(tmp_path / "list.tsv") == found
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "list.parquet")
    assert records(tmp_path / "list.parquet") == found


def test_rows_that_lead_out_of_their_folder_have_a_problem(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.csv").write_text("path\n../a.png\n/etc/passwd\nfile:///etc/passwd\nb.png\n")
    found = records(tmp_path / "in" / "list.csv")
    assert ["leads out" in record.problem for record in found] == [True, True, True, False]
    (tmp_path / "in" / "none.csv").write_text("name\na\n")
    with pytest.raises(ManifestError, match="none.csv:2: names no file"):
        records(tmp_path / "in" / "none.csv")


def test_members_of_shards_and_their_damage(tmp_path):
    whole = shard(tmp_path / "a-0.tar", ["x/1.png", "x/1.json", "x/1.seg.png", "2.nii.gz", "._2.nii.gz", "1.2.3.dcm"])
    found = records(tmp_path / "a-{0..0}.tar")
    assert [record.source for record in found] == ["a-0.tar/x/1.png", "a-0.tar/2.nii.gz", "a-0.tar/1.2.3.dcm"]
    run(tmp_path / "out", [whole], DigestOf(str(tmp_path / "log")), form="jsonl")
    (tmp_path / "b.tar").write_bytes(whole.read_bytes()[:3500])
    damaged = records(tmp_path / "b.tar")
    assert not damaged[0].problem and "samples after it are lost" in damaged[-1].problem
    (tmp_path / "c.tar").write_bytes(b"no tar" * 200)
    assert "not an uncompressed tar" in records(tmp_path / "c.tar")[0].problem


def test_a_folder_in_memory_and_in_a_shard_there(tmp_path):
    files = fsspec.filesystem("memory")
    path = shard(tmp_path / "s.tar", ["1.png", "2.png"])
    files.pipe({"/set/a.png": b"a", "/set/b/c.png": b"c", "/set/b/d.txt": b"d", "/s.tar": path.read_bytes(),
                "/list.csv": b"path\nset/a.png\n../x\n"})  # fmt: skip
    try:
        found = records("memory://set/", "memory://s.tar", "memory://list.csv")
        assert [record.source for record in found] == [
            "a.png",
            "b/c.png",
            "s.tar/1.png",
            "s.tar/2.png",
            "set/a.png",
            "../x",
        ]
        report = run(tmp_path / "out", ["memory://set/", "memory://s.tar"], DigestOf(str(tmp_path / "log")))
        assert report.exit_code == 0 and not (tmp_path / "out" / ".scratch").exists()
        files.pipe({"/set/a.png": b"other"})
        again = run(tmp_path / "out", ["memory://set/", "memory://s.tar"], DigestOf(str(tmp_path / "log")))
        assert again.skipped == 3 and DigestOf(str(tmp_path / "log")).worked() == [0, 1, 2, 3, 0]
        with pytest.raises(CohortError, match="lives in one process"):
            run(tmp_path / "other", ["memory://set/"], DigestOf(""), workers=2)
    finally:
        files.rm("/", recursive=True)


def test_series_of_a_dicom_folder_are_records_of_their_own(tmp_path):
    for number in (1, 2):
        made = slices(
            np.zeros((4, 5, 3), np.int16), grid((1, 1, 3)), SeriesInstanceUID=f"1.2.{number}", SeriesNumber=number
        )
        save(tmp_path / "study", made, [f"{number}-{place}.dcm" for place in range(3)])
    found = records(tmp_path)
    assert len(found) == 2 and len({record.series for record in found}) == 2
    assert [record.name for record in found] == ["00000000-study-series-1", "00000001-study-series-2"]
    assert len(records(tmp_path, one_series=True)) == 1


def test_nothing_there(tmp_path):
    with pytest.raises(CohortError, match="no such file or folder"):
        records(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="chains"):
        file_system("zip://a::file:///etc/passwd")
    with pytest.raises(ValueError, match="Protocol not known: nope"):
        records("nope://x/a.png")
    assert without_query("https://me:key@host/a.png?X-Amz-Signature=1") == "https://host/a.png"


def test_a_network_that_fails_for_a_while_changes_nothing(tmp_path):
    pytest.importorskip("aiohttp")
    data = {f"{n}.png": b"%d" % n * 100 for n in range(4)} | {"s.tar": shard(tmp_path / "s", ["1.png"]).read_bytes()}
    with http_server(data, fails=lambda number: number % 3 == 0) as (url, asked):
        words = [f"{url}/{n}.png?key=secret" for n in range(4)] + [f"{url}/s.tar"]
        report = run(tmp_path / "a", words, DigestOf(str(tmp_path / "log")), form="jsonl")
        assert report.exit_code == 0 and report.finished == 5 and len(asked) > 15
        assert "secret" not in (tmp_path / "a" / "cohort.json").read_text()
    assert read_digests(tmp_path / "a") == [data[f"{n}.png"] for n in range(4)] + [b"1.png"]


def test_keys_of_addresses_are_written_nowhere_and_may_change(tmp_path):
    pytest.importorskip("aiohttp")
    data, down = {f"{n}.png": b"%d" % n for n in range(3)}, []

    with http_server(data, fails=lambda number: bool(down)) as (url, asked):

        def table(signature):
            rows = [f"{url}/{n}.png?v={n}&X-Amz-Signature={signature}&X-Amz-Date=1" for n in (0, 1, 9)]
            (tmp_path / "list.csv").write_text("\n".join(["url", *rows, url.replace("//", "//me:pa%40ss@") + "/2.png"]))
            return [tmp_path / "list.csv"]

        log = DigestOf(str(tmp_path / "log"))
        options = dict(form="jsonl", part_rows=2, patience_s=0.2)
        report = run(tmp_path / "out", table("hidden1"), log, workers=2, **options)
        assert report.finished == 4 and report.failed == 1 and set(log.worked()) == {0, 1, 3}
        report = run(tmp_path / "out", table("hidden2"), log, **options)
        assert report.finished == 4 and sorted(log.worked()) == [0, 1, 3], "signed again, not asked again"
        down.append(1)
        report = run(tmp_path / "out", table("hidden3"), log, **options)
        assert "not reached" in report.stopped or report.failed
        everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
        assert b"9.png" in everything
        for text in (everything.decode("utf-8", "replace"), repr(report)):
            assert "hidden" not in text and "pa%40ss" not in text and "me:" not in text
        with pytest.raises(CohortError, match="other sources"):
            (tmp_path / "list.csv").write_text((tmp_path / "list.csv").read_text().replace("?v=1", "?v=2"))
            run(tmp_path / "out", [tmp_path / "list.csv"], log, **options)


def test_whole_addresses_travel_with_their_part(tmp_path):
    place = "https://me:hidden@host/a.png?sig=hidden"
    made = [CohortRecord("a.png", place), CohortRecord("b.png", "https://host/b.png")]
    (part,) = make_plan(tmp_path, [replace(one, number=n) for n, one in enumerate(made)], {}, 2, "jsonl").parts
    sent = Part(**json.loads(json.dumps(asdict(part))))  # as to an actor of Ray
    assert [record.place for record in read_part(tmp_path, sent)] == [place, "https://host/b.png"]
    assert "hidden" not in (tmp_path / "records.jsonl").read_text() and "hidden" not in repr(part)


@pytest.mark.parametrize("text, kept", [
    ("https://me:key@host/a.png?sig=1", "https://host/a.png?***"),
    ("FileNotFoundError: http://h/a?x=1, again", "FileNotFoundError: http://h/a?*** again"),
    ("shards='s3://key:secret@bucket/a-?.tar'", "shards='s3://bucket/a-?.tar'"),
    ("s3://b/a.tar?versionId=3&X-Amz-Signature=f00", "s3://b/a.tar?versionId=3&X-Amz-Signature=***"),
    ("az://c/a?sv=1&sig=abc&name=b", "az://c/a?sv=***&sig=***&name=b"),
    ("no address: a@b ?token", "no address: a@b ?token"),
])  # fmt: skip
def test_what_of_an_address_may_be_kept(text, kept):
    assert redacted(text) == kept
    assert redacted(kept) == kept


def test_an_address_is_known_again_when_it_is_signed_anew():
    signed = [f"https://h/a.png?v=1&X-Amz-Date={n}&X-Amz-Signature=s{n}&token=t{n}" for n in (1, 2)]
    assert address_key(signed[0]) == address_key(signed[1]) == address_key("https://u:p@h/a.png?v=1")
    assert address_key(signed[0]) != address_key(signed[0].replace("v=1", "v=2"))


def read_digests(folder):
    import hashlib

    from unimed.files import read_json_lines

    texts = [row["texts"][0] for _, row in read_json_lines(folder / "rows" / "part-000000.jsonl")]
    known = {hashlib.sha256(data).hexdigest(): data for data in [*(b"%d" % n * 100 for n in range(4)), b"1.png"]}
    return [known[text] for text in texts]


def test_a_network_that_stays_away_stops_the_job_and_what_is_not_there_does_not(tmp_path):
    pytest.importorskip("aiohttp")
    down = []
    data = {f"{n}.png": b"%d" % n for n in range(6)}
    (tmp_path / "plain.jsonl").write_text("")
    with http_server(data | {"list.csv": b"url\n" + b"".join(b"%d.png\n" % n for n in (0, 1, 9, 3, 4, 5))},
                     fails=lambda number: bool(down)) as (url, asked):  # fmt: skip

        class Cut(DigestOf):
            def __call__(self, record, path, folder):
                row = super().__call__(record, path, folder)
                if record.number == 3:
                    down.append(1)
                return row

        words, log = [f"{url}/list.csv"], str(tmp_path / "log")
        report = run(tmp_path / "a", words, Cut(log), form="jsonl", part_rows=2, patience_s=0.3)
        assert "not reached within 0.3 s" in report.stopped and report.missing == "4-5"
        down.clear()
        report = run(tmp_path / "a", words, DigestOf(log), form="jsonl", part_rows=2, patience_s=0.3)
        assert report.finished == 6 and report.failed == 1 and DigestOf(log).worked() == [0, 1, 3, 4, 5]
        run(tmp_path / "b", words, DigestOf(log), form="jsonl", part_rows=2)
        assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_what_is_tried_again_and_what_is_not():
    calls = []

    def work():
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("reset")
        return 7

    assert retried(work, "x", 60) == 7
    with pytest.raises(FileNotFoundError):
        retried(lambda: (_ for _ in ()).throw(FileNotFoundError("x")), "x")
    with pytest.raises(UnreachableError, match="x: not reached within 0.1 s .ConnectionError: reset"):
        calls.clear()
        retried(lambda: (_ for _ in ()).throw(ConnectionError("reset")), "x", 0.1)
    files = fsspec.filesystem("memory")
    files.pipe({"/r": b"0123456789"})
    assert read_range("memory://r", 3, 4) == b"3456"
    files.rm("/r")


def test_s3_through_a_stand_in(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x",
                            "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("bucket")
        tar = shard(tmp_path / "s.tar", ["1.png", "2.png"]).read_bytes()
        files.pipe({"bucket/in/a.png": b"a", "bucket/in/deep/b.png": b"b", "bucket/s.tar": tar,
                    "bucket/list.csv": b"path\nin/a.png\nin/none.png\n"})  # fmt: skip
        words = ["s3://bucket/in/", "s3://bucket/s.tar", "s3://bucket/list.csv"]
        report = run(tmp_path / "out", words, DigestOf(str(tmp_path / "log")), form="jsonl")
        assert (report.finished, report.failed) == (6, 1)
        run(tmp_path / "out", words, DigestOf(str(tmp_path / "log")), form="jsonl")
        assert DigestOf(str(tmp_path / "log")).worked() == [0, 1, 2, 3, 4]
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # the next test has a server of its own
        server.stop()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "path,text\nb.png,Segment the liver, please.\n", "a.csv:2: more cells than the header"),
        ("a.jsonl", '{"path": "b.png", "text": 5}', "a.jsonl:1: text is a question"),
        ("a.jsonl", '{"path": "b.png", "text": {"a": 1}}', "a.jsonl:1: text is a question"),
        ("a.jsonl", '{"path": ["b.png"]}', "a.jsonl:1: path is no path"),
        ("a.jsonl", '{"path": "b\\u0000.png"}', "a.jsonl:1: path is no path"),
    ],
)
def test_rows_that_would_be_misread_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=says):
        records(tmp_path / name)


def test_a_protocol_that_asks_for_a_host_is_refused_without_its_password():
    with pytest.raises(ValueError, match="ftp:// is not read here") as caught:
        file_system("ftp://user:secret@127.0.0.1/a.png")
    assert "secret" not in str(caught.value)
