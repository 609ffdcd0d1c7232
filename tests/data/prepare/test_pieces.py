"""Data prepared by several processes are those of one, byte by byte, and an interrupted preparation goes on."""

import json

import numpy as np
import pytest
from cohorts import tree
from PIL import Image

from unimed.commands.cli import main
from unimed.data.prepare import biomed_volumes, folder, repack
from unimed.data.prepare.pairs.sources import SOURCES, Pair
from unimed.data.prepare.pairs.writing import write_shards
from unimed.data.prepare.pieces import pieces_of
from unimed.data.readers.records import RecordDataset
from unimed.geometry import Geometry
from unimed.io.write import write_nifti


@pytest.fixture
def masked(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(7):
        Image.fromarray(rng.integers(0, 255, (20, 16), dtype=np.uint8)).save(tmp_path / f"images/p{number}.png")
        mask = np.zeros((20, 16), np.uint8)
        mask[3 : 6 + number, 4:9] = 255
        Image.fromarray(mask).save(tmp_path / f"masks/p{number}.png")
    return tmp_path


def prepare(root, out, *flags):
    return main(["prepare", "folder", str(root / "images"), str(root / "masks"), "--out", str(out),
                 "--phrase", "tumor", *flags])  # fmt: skip


def test_records_and_their_shards(masked, capsys):
    # The folder's name stands in dataset.json, so both sets have the same one.
    one, two = masked / "one" / "set", masked / "two" / "set"
    assert prepare(masked, one) == 0 and prepare(masked, two, "--workers", "2") == 0
    assert tree(one) == tree(two) and len(tree(one)) > 14
    for out, flags in ((masked / "s1", []), (masked / "s2", ["--workers", "2"])):
        assert main(["prepare", "repack", str(one), str(out), "--per-shard", "3", *flags]) == 0
    assert tree(masked / "s1") == tree(masked / "s2") and len(tree(masked / "s1")) > 3
    assert not [path for path in masked.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("place", [0, 3, 6])
def test_an_interrupted_folder_goes_on(masked, monkeypatch, place):
    assert prepare(masked, masked / "one" / "set") == 0
    asked, records_of = [], folder._records

    def interrupted(image, *rest):
        asked.append(image.path.name)
        if len(asked) == place + 1:
            raise KeyboardInterrupt
        return records_of(image, *rest)

    monkeypatch.setattr(folder, "_records", interrupted)
    assert prepare(masked, masked / "two" / "set") == 130
    assert not (masked / "two" / "set").exists()
    assert prepare(masked, masked / "two" / "set") == 0
    assert len(asked) == 8 and tree(masked / "one") == tree(masked / "two")


def test_a_replaced_file_and_other_settings_are_made_again(masked, monkeypatch):
    seen = []

    def make():
        return lambda item: seen.append(item) or item * 2

    def pieces(settings, keys):
        with pieces_of(masked / ".staging", settings) as made:
            for number, result in enumerate(made.results(make, [1, 2, 3], keys, 1, "piece")):
                if number == 1:
                    raise KeyboardInterrupt
                assert result == 2

    for settings, keys in (({"a": 1}, "xyz"), ({"a": 1}, "xyz"), ({"a": 1}, "Xyz"), ({"a": 2}, "xyz")):
        with pytest.raises(KeyboardInterrupt):
            pieces(settings, list(keys))
    assert seen == [1, 2, 1, 1, 2]
    with pytest.raises(ValueError), pieces_of(masked / ".staging", {}):
        raise ValueError("wrong data")
    assert not (masked / ".staging").exists()


def test_a_repack_goes_on_after_it_was_killed_among_its_last_steps(masked, monkeypatch):
    assert prepare(masked, masked / "set") == 0
    records = RecordDataset(masked / "set")
    whole = repack.write_shards(records, masked / "whole", "train", per_shard=2)
    moved, replace = [], repack.os.replace

    def killed(source, place):
        if len(moved) == 1:
            raise KeyboardInterrupt
        moved.append(place)
        replace(source, place)

    monkeypatch.setattr(repack.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        repack.write_shards(records, masked / "again", "train", per_shard=2)
    monkeypatch.setattr(repack.os, "replace", replace)
    assert len(repack.write_shards(records, masked / "again", "train", per_shard=2)) == len(whole)
    assert tree(masked / "whole") == tree(masked / "again")


def test_image_text_shards_in_processes(tmp_path):
    (tmp_path / "in").mkdir()
    pairs = []
    for number in range(70):
        path = tmp_path / "in" / f"{number}.png"
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(path)
        pairs.append(Pair(path, (f"caption {number}",)))
    (tmp_path / "in" / "40.png").write_bytes(b"no image")
    source = SOURCES["radimagenet"]
    one = write_shards(source, iter(pairs), tmp_path / "one", per_shard=9, report=lambda _: None)
    two = write_shards(source, iter(pairs), tmp_path / "two", per_shard=9, workers=2, report=lambda _: None)
    assert one == two and tree(tmp_path / "one") == tree(tmp_path / "two") and one["skipped"] == 1


def test_volumes_in_processes_go_on(tmp_path, monkeypatch):
    grid = Geometry(np.diag((-1.0, 2.0, 3.0, 1.0)))
    for number in range(3):
        rng = np.random.default_rng(number)
        write_nifti(tmp_path / "images" / f"v{number}.nii.gz", rng.integers(-9, 99, (6, 5, 4)).astype(np.int16), grid)
        write_nifti(tmp_path / "labels" / f"v{number}.nii.gz", rng.integers(0, 2, (6, 5, 4)).astype(np.uint8), grid)
    places = tmp_path / "images", tmp_path / "labels", {"1": "liver"}
    meta = biomed_volumes.build(*places, tmp_path / "one")
    biomed_volumes.build(*places, tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two") and len(json.loads(meta.read_text())["volumes"]) == 3
    write, asked = biomed_volumes._write, []

    def interrupted(name, *rest):
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return write(name, *rest)

    monkeypatch.setattr(biomed_volumes, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        biomed_volumes.build(*places, tmp_path / "three")
    biomed_volumes.build(*places, tmp_path / "three")
    assert asked == ["v0", "v1", "v1", "v2"] and tree(tmp_path / "one") == tree(tmp_path / "three")


def test_a_biomedparse_folder_is_checked_by_processes_as_by_one(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in (split, f"{split}_mask"):
            (tmp_path / name).mkdir()
        for number in range(4):
            image, mask = rng.integers(0, 255, (20, 16), dtype=np.uint8), np.zeros((20, 16), np.uint8)
            mask[3:9, 4 : 5 + number] = 255
            Image.fromarray(image).save(tmp_path / split / f"{split}p{number}_CT_abdomen.png")
            Image.fromarray(mask).save(tmp_path / f"{split}_mask" / f"{split}p{number}_CT_abdomen_liver.png")
    (tmp_path / "train" / "trainp1_CT_abdomen.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((20, 16), np.uint8)).save(tmp_path / "test_mask" / "testp2_CT_abdomen_liver.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "test_mask" / "testp3_CT_abdomen_liver.png")
    said = []
    for flags in ([], ["--workers", "2"]):
        assert main(["prepare", "biomedparse", str(tmp_path), "--skip-bad", *flags]) == 0
        said.append((capsys.readouterr().out, tree(tmp_path)))
    assert said[0] == said[1]
    for part in ("trainp1", "mask is empty", "testp3", "no image trainp1_CT_abdomen.png"):
        assert part in said[0][0]
