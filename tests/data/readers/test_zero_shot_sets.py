"""The catalog of 21 sets: readers, prompts and their fingerprints; overlap of collections."""

import csv
import json

import numpy as np
import pytest
from data.readers.test_shards import png, shard
from PIL import Image

from unimed.data.overlap import find_overlap, fingerprints_of
from unimed.data.readers.zero_shot_sets import ZeroShotSetError, catalog, chosen, import_prompts, read_set

SETS = catalog()


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def make_set(one, folder, per_class=2):
    """Files of a set as its owners deliver them, with `per_class` images of every class."""
    reader, root = one.reader, folder / one.reader.get("folder", "")
    targets = [n for n in range(len(one.classes)) for _ in range(per_class)]
    if reader["kind"] == "folders":
        names = [f"{reader['folders'][t]}/{i}.png" for i, t in enumerate(targets)]
    elif reader["kind"] == "file_name":
        names = [f"{i}_{t}.png" for i, t in enumerate(targets)]
    else:
        names = [f"{i}.png" for i in range(len(targets))]
    labels = [str(t) if reader.get("values") == "index" else (reader.get("values") or [""])[t % 99] if
              reader.get("values") else "" for t in targets]  # fmt: skip
    for number, (name, label) in enumerate(zip(names, labels, strict=True)):
        path = root / reader.get("image", "{path}").format(path=name, label=label)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(40 + number))
    if reader["kind"] == "one_hot":
        head = [reader["path"], *one.names]
        write(
            root / reader["file"],
            [head, *([n, *np.eye(len(one.classes), dtype=int)[t]] for n, t in zip(names, targets, strict=True))],
        )
    if reader["kind"] == "csv":
        width = max(reader["path"], reader["label"]) + 1
        where = reader.get("where", {})
        head = [f"c{i}" for i in range(width)] + list(where)
        rows = []
        for name, label in zip(names, labels, strict=True):
            row = [""] * width
            row[reader["path"]] = name
            row[reader["label"]] = f"['{label}']" if reader.get("list") else label
            rows.append(row + list(where.values()))
        if where:
            rows.append(rows[0][:width] + ["other"] * len(where))  # another split, left out
        write(root / reader["file"], [*([head] if reader.get("header", True) else []), *rows])
    return targets


def test_the_catalogue():
    assert len(SETS) == 21
    assert [one.id for one in SETS.values() if one.headline == "auc"] == [
        "acl_mri", "meniscal_mri", "thyroid_us", "breast_us", "refuge_retina"
    ]  # fmt: skip
    counts = {}
    for one in SETS.values():
        counts[one.modality] = counts.get(one.modality, 0) + 1
        prompts = one.own_prompts()
        assert tuple(prompts) == one.names and all(len(set(texts)) == len(texts) for texts in prompts.values())
        assert len({text for texts in prompts.values() for text in texts}) == sum(map(len, prompts.values()))
    assert counts == {"X-ray": 2, "CT": 3, "MRI": 2, "ultrasound": 2, "fundus": 4, "histopathology": 8}
    assert {one.id for one in SETS.values() if one.overlap} >= {"chexpert-5x200", "rsna_pneumonia"}
    with pytest.raises(ZeroShotSetError, match="chexpert-5x200"):
        chosen(["chexpert"])


def test_prompts_by_patterns_are_the_published_ones():
    published = [one.id for one in SETS.values() if one.is_published(one.own_prompts())]
    assert published == ["NCK_CRC", "BACH", "Osteo", "skin_cancer", "skin_tumor"]


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read(name, tmp_path, capsys):
    one = SETS[name]
    expected = make_set(one, tmp_path)
    paths, targets = read_set(one, tmp_path)
    assert sorted(targets) == expected and all(path.is_file() for path in paths)
    assert (one.n is not None) == (f"the published set has {one.n}" in capsys.readouterr().out)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ZeroShotSetError, match="test_fold1.csv is not there"):
        read_set(SETS["acl_mri"], tmp_path)
    write(tmp_path / "test_fold1.csv", [["path", "label"], ["gone.png", "no"]])
    with pytest.raises(ZeroShotSetError, match=r"test_fold1.csv:2: the image .*gone.png"):
        read_set(SETS["acl_mri"], tmp_path)
    write(tmp_path / "test_fold1.csv", [["path", "label"], ["a.png", "perhaps"]])
    with pytest.raises(ZeroShotSetError, match="'perhaps' is none of the 2 classes"):
        read_set(SETS["acl_mri"], tmp_path)
    write(tmp_path / "test_fold1.csv", [["path", "label"], ["../../x.png", "no"]])
    with pytest.raises(ZeroShotSetError, match="leads out"):
        read_set(SETS["acl_mri"], tmp_path)
    (tmp_path / "PCam_Test_preprocessed").mkdir()
    (tmp_path / "PCam_Test_preprocessed" / "noclass.png").write_bytes(png(1))
    with pytest.raises(ZeroShotSetError, match="no class number"):
        read_set(SETS["PCAM"], tmp_path)


def write_constants(path):
    """A file of prompts as the published one is laid out: one set whose prompts are public, one of other words."""
    one = SETS["BACH"]
    good = {entry["key"]: one.own_prompts()[entry["name"]] for entry in one.classes}
    path.write_text(
        f"raise SystemExit('this runs nothing')\nBACH_prompts = {good!r}\n"
        f"Osteo_prompts = { ({k: ['x'] for k in ('Normal non-tumor', 'Necrotic', 'Tumor')})!r}\n"
        "PCAM = {'Lymph node': ['a']}\nacl_mri_prompts = make()\n"
    )


def test_imported_prompts_are_checked(tmp_path):
    """A user's own file is parsed and never run; what does not fit the fingerprint is left out and named."""
    one, source = SETS["BACH"], tmp_path / "constants.py"
    write_constants(source)
    states = import_prompts(source, tmp_path / "prompts.json")
    assert states["BACH"] == "published" and "fingerprint" in states["Osteo"]
    assert "is missing" in states["PCAM"] and "not in the file" in states["acl_mri"]
    kept = json.loads((tmp_path / "prompts.json").read_text())
    assert list(kept) == ["BACH"] and one.is_published(kept["BACH"])
    source.write_text("def broken(:")
    with pytest.raises(ZeroShotSetError, match="cannot be read as a Python file"):
        import_prompts(source, tmp_path / "p.json")
    source.write_text("a = 1")
    with pytest.raises(ZeroShotSetError, match="no prompts"):
        import_prompts(source, tmp_path / "p.json")


def test_overlap(tmp_path):
    generator = np.random.default_rng(0)
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    for number in range(4):
        smooth = generator.integers(0, 255, (6, 6)).astype(np.uint8)
        picture = Image.fromarray(smooth).resize((96, 96), Image.Resampling.BICUBIC)
        picture.save(first / f"{number}.png")
        if number < 3:
            picture.resize((80, 80)).save(second / f"small-{number}.jpg")
    (second / "same.png").write_bytes((first / "3.png").read_bytes())
    Image.fromarray(generator.integers(0, 255, (64, 64)).astype(np.uint8)).save(second / "other.png")
    Image.new("L", (20, 20), 7).save(second / "flat.png")
    (second / "broken.png").write_bytes(b"no")
    broken = []
    rows = find_overlap(fingerprints_of(str(first), broken), fingerprints_of(str(second), broken), bits=4)
    found = {row["image"].rsplit("/", 1)[1]: row["kind"] for row in rows}
    assert found == {"same.png": "equal bytes"} | {f"small-{n}.jpg": "looks alike" for n in range(3)}
    assert len(broken) == 1 and "broken.png" in broken[0]
    shard(tmp_path / "s", 1)
    assert len(list(fingerprints_of(str(tmp_path / "s" / "*.tar"), broken))) == 3
