"""Shards: any order, several captions, and everything that can be wrong with them is named."""

import io
import json
import os
import random
import tarfile

import numpy as np
import pytest
from golden_files import SMALL
from PIL import Image

from unimed.data.mixture import Key, KeyedDatasets
from unimed.data.readers.shards import ImageTextShards, ShardError, expand_shards
from unimed.data.wordings.captions import draw_caption, parse_captions

CHOICES = json.loads((SMALL / "unimed_clip" / "caption_choice.json").read_text())
EXPANSION = {
    "/d/rad/dataset-{000001..000003}.tar::/d/chex/dataset-{000001..000002}.tar": 5,
    "a/{x,y}/{8..11}.tar": 8,
}


def png(value, size=(9, 7)):
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shard(folder, number, count=3):
    members = []
    for place in range(count):
        key = f"{number * 100 + place:06d}"
        members += [(f"{key}.jpg", png(10 * number + place)), (f"{key}.txt", f"caption {key}".encode())]
    return write_shard(folder / f"dataset-{number:06d}.tar", members)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_captions_are_drawn_as_recorded(name):
    case = CHOICES[name]
    drawn = parse_captions(case["stored_text"], "reference")
    assert sorted(set(drawn)) == sorted(case["support"])
    picks = []
    for seed in range(8):
        random.seed(seed)
        picks.append(draw_caption(drawn))
    assert picks == case["picks_for_seed_0_7"]


def test_captions_by_default_are_never_empty():
    for case in CHOICES.values():
        assert all(caption.strip() for caption in parse_captions(case["stored_text"]))
    assert len(parse_captions(CHOICES["openi_orig_plus3"]["stored_text"])) == 4
    assert parse_captions("a dot.._radimagenet_b.._radimagenet_") == ("a dot.", "b.")


@pytest.mark.parametrize("pattern", EXPANSION)
def test_patterns(pattern):
    assert len(expand_shards(pattern)) == EXPANSION[pattern]
    with pytest.raises(ShardError, match="no shard"):
        expand_shards("/nowhere/*.tar")


def test_recorded_patterns():
    recorded = json.loads((SMALL / "unimed_clip" / "url_expansion.json").read_text())
    assert [str(path) for path in expand_shards(recorded["input"])] == recorded["expand_no_weights"]


def test_any_order_and_an_index_that_is_kept(tmp_path):
    paths = [shard(tmp_path / "s", n) for n in (1, 2)]
    data = ImageTextShards(str(tmp_path / "s" / "*.tar"), name="mine")
    assert len(data) == 6
    sample = data[4]
    assert (sample.labels["captions"], sample.source) == (("caption 000201",), "mine")
    assert sample.images[0].shape == (7, 9) and (sample.images[0] == 21).all()
    assert sample.sample_id == "dataset-000002.tar/000201"
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "shards").iterdir()}
    assert len(kept) == 2
    assert ImageTextShards(paths)[4].sample_id == sample.sample_id
    assert kept == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "shards").iterdir()}


def test_webdataset_reads_the_same(tmp_path):
    import webdataset

    path = shard(tmp_path, 1)
    theirs = [s["txt"] for s in webdataset.WebDataset(str(path), shardshuffle=False).decode()]
    data = ImageTextShards(path)
    assert theirs == [data[i].labels["captions"][0] for i in range(len(data))]


def test_published_shards_open():
    data = ImageTextShards(sorted((SMALL / "unimed_clip" / "shards_chexpert").glob("*.tar")))
    assert len(data) == 5 and len(data[0].labels["captions"]) == 10 and len(data[4].labels["captions"]) == 3


def test_broken_samples_are_named(tmp_path):
    path = write_shard(
        tmp_path / "s" / "a.tar",
        [
            ("0.jpg", png(1)), ("0.txt", b"fine"),
            ("1.jpg", b"no picture at all"), ("1.txt", b"text"),
            ("2.jpg", png(2)),
            ("3.txt", b"alone"),
            ("4.jpg", png(3)), ("4.txt", b"  "),
            ("5.jpg", png(3)), ("5.json", b"{broken"),
            ("6.png", png(3)), ("6.json", b'{"captions": ["a", "b"], "weights": [1, 3], "label": "x"}'),
        ],
    )  # fmt: skip
    data = ImageTextShards(path)
    assert data[0].labels["captions"] == ("fine",)
    assert data[6].labels["label"] == "x" and data[6].labels["weights"] == [1, 3]
    for number, words in ((1, "damaged"), (2, "no text"), (3, "no image"), (4, "empty text"), (5, "text is damaged")):
        with pytest.raises((ShardError, ValueError), match=rf"a.tar: sample {number}.*{words}"):
            data[number]
    keyed = KeyedDatasets([data], ["mine"])
    sample, broken = keyed[Key(0, 1, 0, 0)]
    assert sample.labels["captions"] == ("a", "b") and [b.index for b in broken] == [1, 2, 3, 4, 5]


def test_a_shard_that_ends_early(tmp_path):
    path = shard(tmp_path, 1, count=4)
    path.write_bytes(path.read_bytes()[:2300])
    data = ImageTextShards(path)
    assert data[0].labels["captions"] == ("caption 000100",)
    with pytest.raises(ShardError, match="ends early|lost"):
        data[len(data) - 1]


def test_a_shard_that_vanishes_in_the_run(tmp_path):
    paths = [shard(tmp_path / "s", n, count=20) for n in (1, 2, 3)]
    data = ImageTextShards(paths)
    keyed = KeyedDatasets([data], ["mine"])
    os.remove(paths[1])
    sample, broken = keyed[Key(0, 25, 0, 0)]
    assert "dataset-000002.tar: the shard is gone" in str(broken[0]) and len(broken) == 1
    assert sample.sample_id == "dataset-000003.tar/000305"
    shard(tmp_path / "s", 3, count=2)
    with pytest.raises(ShardError, match="changed since the run began"):
        data[45]
    with pytest.raises(ShardError, match="no such shard"):
        ImageTextShards(paths)


def test_sixteen_bits_are_windowed(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.linspace(0, 4095, 400).reshape(20, 20).astype(np.uint16)).save(stream, "TIFF")
    path = write_shard(tmp_path / "d.tar", [("0.jpg", stream.getvalue()), ("0.txt", b"deep")])
    image = ImageTextShards(path)[0].images[0]
    assert image.dtype == np.uint8 and 100 < image.mean() < 155


def named(path, *names):
    """A shard of these members; an image is as bright as its place, a text says its place."""
    members = [(name, str(n).encode() if name.endswith("txt") else png(n)) for n, name in enumerate(names, 1)]
    return write_shard(path, members)


def pairs(path):
    """{key: (brightness of the image, words of the text)}, numbers of which differ by one where they belong together"""
    data = ImageTextShards(path)
    samples = [data[index] for index in range(len(data))]
    return {
        s.sample_id.partition("/")[2]: (int(s.images[0].max()), int(s.labels["captions"][0].rstrip(".")))
        for s in samples
    }


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["x1.png", "x1.txt", "1.2.840.7.png", "1.2.840.7.txt"], {"x1": (1, 2), "1.2.840.7": (3, 4)}),
        (["1.2.1.png", "1.2.1.txt", "1.2.2.png", "1.2.2.txt"], {"1.2.1": (1, 2), "1.2.2": (3, 4)}),
        (["a/1.2.png", "a/1.2.txt", "b/1.2.png", "b/1.2.txt"], {"a/1.2": (1, 2), "b/1.2": (3, 4)}),
        (["a.png", "a.seg.png", "a.txt", "a.0.mask.png"], {"a": (1, 3)}),
        (["./a.PNG", "./a.TXT".lower(), "./._a.png"], {"a": (1, 2)}),
        (["b.png", "a.png", "a.txt", "b.txt"], {"b": (1, 4), "a": (2, 3)}),
        (["v.1/a.png", "v.1/a.txt", "v.2/a.png", "v.2/a.txt"], {"v.1/a": (1, 2), "v.2/a": (3, 4)}),
    ],
)
def test_no_name_is_left_out_or_mixed(tmp_path, members, expected):
    assert pairs(named(tmp_path / "a.tar", *members)) == expected


def test_half_a_sample_with_dots_is_named(tmp_path):
    data = ImageTextShards(named(tmp_path / "a.tar", "x.png", "x.txt", "1.2.840.png"))
    assert len(data) == 2
    with pytest.raises(ShardError, match=r"sample 1\.2\.840 has no text"):
        data[1]


@pytest.mark.parametrize(
    "members", [["a.png", "a.txt", "a.png", "a.txt"], ["a.png", "a.PNG", "a.txt"], ["a.png", "a.jpg", "a.txt"]]
    + [["1.2.png", "1.2.txt", "1.2.png"], ["./a.png", "a.png", "a.txt"], ["a.png", "b.png", "b.txt", "a.txt", "a.txt"]],
)  # fmt: skip
def test_a_key_twice_names_both(tmp_path, members):
    with pytest.raises(ShardError, match=r"a\.tar: key [a12.]+ stands twice, as \S+ \(byte \d+\) and \S+ \(byte \d+\)"):
        ImageTextShards(named(tmp_path / "a.tar", *members))


def test_an_index_of_another_version_is_made_again(tmp_path):
    path = shard(tmp_path, 1)
    ImageTextShards(path)
    (kept,) = (tmp_path / "cache" / "shards").iterdir()
    with np.load(kept) as archive:
        arrays = dict(archive)
    arrays["stamp"][0] -= 1
    arrays["names"], arrays["table"] = arrays["names"][:1], arrays["table"][:1]
    np.savez(kept, **arrays)
    assert len(ImageTextShards(path)) == 3
