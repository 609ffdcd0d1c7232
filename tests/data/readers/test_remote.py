"""Shards behind URLs: the same samples as on disk, whatever the server does meanwhile; the cache keeps its size."""

import http.server
import threading
import time
from types import SimpleNamespace

import fsspec
import pytest
from mmengine.config import Config

pytest.importorskip("aiohttp")

from data.readers.test_shards import shard  # noqa: E402

from unimed.data.mixture import Mixture  # noqa: E402
from unimed.data.readers import remote  # noqa: E402
from unimed.data.readers.containers import ShardDataset  # noqa: E402
from unimed.data.readers.shards import ImageTextShards, ShardError, expand_shards  # noqa: E402
from unimed.engine.runner import EngineRunner  # noqa: E402
from unimed.io import remote as io_remote  # noqa: E402


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder with ranges. `faults` is a list of words, one per answer to a request for content; see `Handler`.

    Attributes:
        down_until: requests before this time are not answered: the connection is closed.
        content: number of answers with content.
    """

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.faults, self.down_until, self.content, self.version = folder, [], 0.0, 0, "1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    """ "500", "429" and "403" are answers, "cut" sends half of what was announced, "close" nothing, "whole" ignores the
    range."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(None)

    def do_GET(self):
        self.answer(self.server.faults.pop(0) if self.server.faults else "")

    def answer(self, fault):
        if time.monotonic() < self.server.down_until or fault == "close":
            self.close_connection = True
            return
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file() or (fault or "").isdigit():
            self.send_response(int(fault) if path.is_file() else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, total = path.read_bytes(), path.stat().st_size
        asked = self.headers.get("Range") if fault != "whole" else None
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            data = data[int(first) : int(last or total) + 1]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{total}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{self.server.version}"')
        self.send_header("Content-Length", str(len(data) if fault is not None else total))
        self.end_headers()
        if fault is not None:
            self.server.content += 1
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            self.close_connection = fault == "cut"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(io_remote, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(io_remote, "_LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(remote, "PIECE", 4096)
    for number in range(3):
        shard(tmp_path / "served", number)
    started = Server(tmp_path / "served")
    yield started
    started.shutdown()
    started.server_close()


def assert_same(found, folder):
    kept = ImageTextShards(str(folder / "*.tar"))
    assert len(found) == len(kept)
    for index in (8, 0, 4, 3):
        one, other = found[index], kept[index]
        assert one.sample_id == other.sample_id and one.labels == other.labels
        assert (one.images[0] == other.images[0]).all()


def pattern(server):
    return f"{server.url}/dataset-{{000000..000002}}.tar"


def test_samples_are_those_of_the_folder_and_fetched_once(server):
    data = ImageTextShards(pattern(server))
    pieces = server.content
    assert_same(data, server.folder)
    assert_same(ImageTextShards(pattern(server)), server.folder)
    assert server.content == pieces > 3 and data.groups.tolist() == [0, 3, 6, 9]


FAULTS = ["500", "cut", "429", "close", "whole", "503", "cut", "500"]


def test_errors_that_pass_are_waited_for(server):
    server.faults = list(FAULTS)
    assert_same(ImageTextShards(pattern(server)), server.folder)
    assert not server.faults


def test_a_network_that_is_gone_for_a_while(server):
    """What stands for 20 s with the default patience of 120 is one second here."""
    data = ImageTextShards(f"{server.url}/dataset-000000.tar")
    for kept in (remote.cache_folder("remote")).glob("*.part_of_cache"):
        kept.unlink()
    server.down_until = time.monotonic() + 1.0
    assert data[1].labels["captions"] == ("caption 000001",)
    assert time.monotonic() >= server.down_until


def test_patience_ends(server, monkeypatch):
    monkeypatch.setenv(remote.PATIENCE_VARIABLE, "0.3")
    server.down_until = time.monotonic() + 3600
    with pytest.raises(ShardError, match=r"dataset-000001.tar: not reached within 0.3 s \("):
        ImageTextShards(f"{server.url}/dataset-000001.tar")


def test_errors_that_stay_are_told_at_once(server):
    server.faults = ["403"]
    with pytest.raises(ShardError, match=r"dataset-000000.tar: cannot be read \(.*refuses it \(403\)"):
        ImageTextShards(f"{server.url}/dataset-000000.tar?signature=abc")
    with pytest.raises(ShardError, match="nothing.tar: no such shard"):
        ImageTextShards(f"{server.url}/nothing.tar")
    with pytest.raises(ShardError, match="ftp:// is not known; known are s3, gs"):
        ImageTextShards("ftp://127.0.0.1/x.tar")


def test_the_cache_keeps_its_size(server, monkeypatch):
    size = (server.folder / "dataset-000000.tar").stat().st_size
    monkeypatch.setenv(remote.SIZE_VARIABLE, str(2.5 * size / 1e9))
    data = ImageTextShards(pattern(server))
    folder = remote.cache_folder("remote")
    for index in (0, 8, 4, 1, 7, 3, 0, 5):
        data[index]
        kept = [path.stat().st_size for path in folder.iterdir()]
        assert sum(kept) <= 2.5 * size and max(kept) == size
    assert_same(data, server.folder)
    monkeypatch.setenv(remote.SIZE_VARIABLE, str(0.5 * size / 1e9))
    for kept in folder.glob("*.part_of_cache"):
        kept.unlink()
    with pytest.raises(ShardError, match="does not fit into the cache of .*UNIMED_REMOTE_CACHE_GB"):
        data[0]


def test_a_shard_that_changes_is_named_and_indexed_again(server):
    data = ImageTextShards(f"{server.url}/dataset-000000.tar")
    assert data[0].labels["captions"]
    server.version = "2"
    assert len(ImageTextShards(f"{server.url}/dataset-000000.tar")) == 3
    for kept in (remote.cache_folder("remote")).glob("*.part_of_cache"):
        kept.unlink()
    with pytest.raises(ShardError, match="the shard was changed since the run began"):
        data[0]


def test_records_in_shards(server):
    (record,) = [b'{"id": "a", "task": "vqa", "image": "png", "question": "What?", "answer": "A disc."}']
    from data.readers.test_shards import png, write_shard

    write_shard(server.folder / "records.tar", [("a.json", record), ("a.png", png(40))])
    data = ShardDataset(f"{server.url}/records.tar")
    assert data[0].sample_id.endswith("a") and data[0].images[0].max() == 40


def test_forked_data_workers_fetch_too(server):
    import torch

    data = ImageTextShards(pattern(server))
    for kept in (remote.cache_folder("remote")).glob("*.part_of_cache"):
        kept.unlink()
    loader = torch.utils.data.DataLoader(data, num_workers=2, batch_size=None, collate_fn=lambda one: one.sample_id)
    kept = ImageTextShards(str(server.folder / "*.tar"))
    assert list(loader) == [one.sample_id for one in kept]


def test_keys_of_addresses_stand_in_no_message_and_no_config(server, tmp_path):
    def signed(name, key):
        return f"{server.url}/{name}?X-Amz-Signature={key}".replace("//", "//me:hidden@")

    data = ImageTextShards(signed("dataset-000000.tar", "hidden1"))
    before = server.content
    again = ImageTextShards(signed("dataset-000000.tar", "hidden2"))
    assert again[0].sample_id == data[0].sample_id and server.content == before, "signed again, not fetched again"
    assert data[0].source == server.url.rpartition("/")[2]
    for broken in (
        lambda: ImageTextShards(signed("none.tar", "hidden1")),
        lambda: ShardDataset(signed("none.tar", "hidden1")),
        lambda: ShardDataset(signed("dataset-000000.tar", "hidden1")),  # no records
    ):
        with pytest.raises((ShardError, ValueError, OSError)) as caught:
            broken()
        assert "hidden" not in str(caught.value) and ".tar" in str(caught.value)
    settings = Config(dict(train_data=dict(type="ShardDataset", shards=signed("a.tar", "hidden1"))))
    EngineRunner.dump_config(SimpleNamespace(folder=tmp_path, settings=settings))
    kept = (tmp_path / "config.py").read_text()
    assert f"{server.url}/a.tar?***" in kept and "hidden" not in kept


@pytest.mark.parametrize("variable", [remote.SIZE_VARIABLE, remote.PATIENCE_VARIABLE])
def test_variables_that_are_no_numbers_are_named(server, monkeypatch, variable):
    monkeypatch.setenv(variable, "lots")
    with pytest.raises(ShardError, match=f"{variable}='lots' is no number above 0"):
        ImageTextShards(f"{server.url}/dataset-000000.tar")


def test_who_has_no_credentials_is_told_at_once():
    class NoCredentialsError(Exception):
        pass

    def ask():
        raise NoCredentialsError("Unable to locate credentials")

    with pytest.raises(PermissionError, match="s3://b/a.tar: no credentials for it were found .NoCredentialsError"):
        io_remote.retried(ask, "s3://b/a.tar", 60)


def test_files_and_unknown_hosts(server, tmp_path):
    assert ImageTextShards(server.url.replace("http", "HTTP", 1) + "/dataset-000000.tar")[0].images
    assert expand_shards(f"file://{server.folder}/*.tar") == sorted(server.folder.glob("*.tar"))
    with pytest.raises(ShardError, match="cannot be listed|no shard of that pattern"):
        expand_shards("http://127.0.0.1:9/x-*.tar")


def test_a_buffer_keeps_samples_of_a_shard_together():
    starts = list(range(0, 1001, 100))
    mixture = Mixture([1000], seed=3, buffer=50, groups=[starts])
    for epoch in (0, 1):
        order = [mixture[place].index for place in range(epoch * 1000, epoch * 1000 + 1000)]
        assert sorted(order) == list(range(1000))
        shards = [index // 100 for index in order]
        # A window of 100 samples touches three shards at most, and they come in another order in each epoch.
        assert max(len(set(shards[at : at + 100])) for at in range(0, 901, 10)) <= 3
        assert order[:100] != sorted(order[:100])
    first = [mixture[place].index // 100 for place in (50, 250, 450)]
    assert first != [mixture[place].index // 100 for place in (1050, 1250, 1450)]
    again = Mixture([1000], seed=3, buffer=50, groups=[starts])
    assert again[777] == mixture[777]  # position alone decides, so that a run resumes anywhere
    free = Mixture([1000], seed=3, buffer=50)
    assert free[5] == Mixture([1000], seed=3)[5]


def test_an_object_store(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    stand_in = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    stand_in.start()
    host, port = stand_in.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "UNIMED_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        import boto3

        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="cohort")
        for number in range(3):
            path = shard(tmp_path / "served", number)
            client.upload_file(str(path), "cohort", f"pairs/{path.name}")
        assert_same(ImageTextShards("s3://cohort/pairs/dataset-*.tar"), tmp_path / "served")
        with pytest.raises(ShardError, match="s3://cohort/pairs/none.tar: no such shard"):
            ImageTextShards("s3://cohort/pairs/none.tar")
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # the next test has a server of its own
        stand_in.stop()
