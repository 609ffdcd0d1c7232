"""Records come out of tar shards and Arrow tables as they went in, at any place, and damage is named."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from unimed.data.prepare import repack
from unimed.data.readers.containers import ArrowDataset, ShardDataset
from unimed.data.readers.records import RecordDataset, RecordError
from unimed.data.readers.shards import ShardError
from unimed.engine.stream import Stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    for name in ("records", "images", "masks"):
        (root / name).mkdir()
    lines = []
    for number in range(11):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(root / f"images/{number}.png")
        mask = np.zeros((12, 10), np.uint8)
        mask[2:6, 3 : 4 + number % 5] = 255
        Image.fromarray(mask).save(root / f"masks/{number}.v1.png")
        record = dict(
            id=f"r{number}",
            task="referring" if number % 3 else "vqa",
            image=f"images/{number}.png",
            question="where?",
            answer="<p> it </p> [SEG]." if number % 3 else "there",
            patient_id=f"p{number}",
            label="there",
            choices=["there", "nowhere"],
        )
        if number % 3:
            record["regions"] = [dict(phrase="it", mask=f"masks/{number}.v1.png", present=True, phrase_span=[4, 6])]
        lines.append(json.dumps(record))
    (root / "records/train.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    repack.write_shards(RecordDataset(folder), out, "train", per_shard=4)
    return out


def opened(kind, folder, shards, tmp_path_factory):
    if kind == "shards":
        return ShardDataset(shards / "train-*.tar")
    pytest.importorskip("datasets")
    return ArrowDataset(repack.write_arrow(RecordDataset(folder), tmp_path_factory.mktemp("arrow") / "train"))


@pytest.mark.parametrize("kind", ["shards", "arrow"])
def test_records_come_back_as_they_were(folder, shards, tmp_path_factory, kind):
    plain, packed = RecordDataset(folder), opened(kind, folder, shards, tmp_path_factory)
    assert len(packed) == len(plain) == 11
    for index in (10, 0, 4, 7):
        a, b = plain[index], packed[index]
        assert (a.sample_id, a.conversation, a.labels, a.patient_id) == (
            b.sample_id,
            b.conversation,
            b.labels,
            b.patient_id,
        )
        np.testing.assert_array_equal(a.images[0], b.images[0])
        assert len(a.regions) == len(b.regions)
        for first, second in zip(a.regions, b.regions, strict=True):
            np.testing.assert_array_equal(first.mask, second.mask)
            assert (first.phrase, first.presence, first.phrase_span) == (
                second.phrase,
                second.presence,
                second.phrase_span,
            )


def test_shards_are_what_webdataset_reads(shards):
    webdataset = pytest.importorskip("webdataset")
    entries = list(webdataset.WebDataset(str(shards / "train-000000.tar"), shardshuffle=False))
    assert len(entries) == 4 and json.loads(entries[1]["json"])["id"] == "r1" and "0.mask.v1.png" in entries[1]


def test_some_tasks_and_some_records(shards):
    chosen = ShardDataset(shards / "*.tar", tasks=["vqa"], limit=3)
    assert [chosen[i].sample_id for i in range(len(chosen))] == ["r0", "r3", "r6"]
    assert chosen.length_of(1) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_in_the_middle_of_an_epoch(shards, workers):
    def stream():
        data = dict(mixture=[dict(dataset=dict(type="ShardDataset", shards=str(shards / "*.tar")))])
        return Stream(data, list, batch_size=2, rank=0, world_size=1, seed=5, num_workers=workers)

    first = stream()
    walked = []
    for _ in range(8):
        batch, _ = next(first)
        walked.append(([sample.sample_id for sample in batch], dict(first.state)))
    again = stream()
    again.restore(walked[2][1])
    assert [[s.sample_id for s in next(again)[0]] for _ in range(5)] == [ids for ids, _ in walked[3:]]


def test_damage_is_named(shards, tmp_path):
    whole = (shards / "train-000000.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="cut.tar.*cut off"):
        ShardDataset([cut])
    (tmp_path / "packed.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(RecordError, match="packed.tar: not an uncompressed tar file"):
        ShardDataset([tmp_path / "packed.tar"])
    with pytest.raises(ShardError, match="no shard of that pattern"):
        ShardDataset(tmp_path / "none-*.tar")
    lonely = tmp_path / "lonely.tar"
    with tarfile.open(lonely, "w") as archive:
        archive.add(shards / "train-000000.tar", arcname="a.png")
    with pytest.raises(RecordError, match="lonely.tar: key a has no record a.json"):
        ShardDataset([lonely])


def test_existing_shards_are_kept(folder, shards):
    with pytest.raises(FileExistsError, match="train-000000.tar"):
        repack.write_shards(RecordDataset(folder), shards, "train")


def test_a_path_outside_of_the_folder_is_refused(tmp_path):
    (tmp_path / "records").mkdir()
    record = dict(id="a", task="vqa", image="../secret.png", question="?", answer="!")
    (tmp_path / "records/train.jsonl").write_text(json.dumps(record))
    with pytest.raises(RecordError, match="leads out of"):
        RecordDataset(tmp_path)[0]


def test_columns_that_are_missing_are_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"id": ["a"], "text": ["b"]}).save_to_disk(tmp_path / "d")
    with pytest.raises(RecordError, match="column task, question, answer is missing; it holds id, text"):
        ArrowDataset(tmp_path / "d")


def test_names_in_capitals_and_with_dots_are_packed(tmp_path):
    (tmp_path / "records").mkdir()
    records = []
    for number, name in enumerate(("A.PNG", "1.2.840.1.png", "1.2.840.2.png")):
        Image.new("L", (4, 4), number).save(tmp_path / name)
        records.append(dict(id=name, task="vqa", image=name, question="?", answer=str(number)))
    (tmp_path / "records/train.jsonl").write_text("\n".join(map(json.dumps, records)))
    packed = ShardDataset(repack.write_shards(RecordDataset(tmp_path), tmp_path / "out", "train"))
    assert [(s.sample_id, int(s.images[0].max())) for s in (packed[i] for i in range(3))] == [
        (record["id"], number) for number, record in enumerate(records)
    ]


def test_a_key_twice_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.json", "a.png", "a.png"):
            (tmp_path / name).write_text("{}")
            archive.add(tmp_path / name, arcname=name)
    with pytest.raises(RecordError, match=r"key a stands twice, as a\.png \(byte \d+\) and a\.png"):
        ShardDataset(tmp_path / "a.tar")
