"""Readers of the Biomed tree on miniature sets, and the checks that run over them."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from unimed.data import canonical
from unimed.data.checks import check
from unimed.data.prepare.biomed_shapes import build
from unimed.data.readers import unibiomed as tree
from unimed.models.dialects import build_dialect
from unimed.models.dialects.pools import TemplateError

SHAPE = (10, 12)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 255, SHAPE, dtype=np.uint8)


def block(row=2):
    mask = np.zeros(SHAPE, np.uint8)
    mask[row : row + 3, 4:8] = 255
    return mask


def coco(root, split="train", seed=0, count=2, **extra):
    for k in range(count):
        save(root / split / f"p{seed + k}_s1.png", picture(seed + k))
        save(root / f"{split}_mask" / f"p{seed + k}_s1_liver.png", block(k))
    annotations = [
        {
            "id": k,
            "image_id": k,
            "file_name": f"p{seed + k}_s1.png",
            "mask_file": f"p{seed + k}_s1_liver.png",
            "sentences": [{"raw": "Liver in abdomen CT."}, {"raw": "hepatic organ"}],
            **extra,
        }
        for k in range(count)
    ]
    (root / f"{split}.json").write_text(json.dumps({"images": [], "annotations": annotations}))


def test_segmentation_disease_and_region(tmp_path):
    coco(tmp_path)
    sample = tree.BiomedDataset(tmp_path)[1]
    assert sample.conversation == (("user", "Please segment liver in abdomen ct."), ("assistant", "It is [SEG]."))
    assert np.array_equal(sample.regions[0].mask, block(1) > 0)
    disease = tree.BiomedDataset(tmp_path, kind="disease")[0]
    assert disease.conversation[1][1] == "It is [SEG]. liver in abdomen ct."
    region = tree.BiomedDataset(tmp_path, kind="region")[0]
    assert region.labels["task"] == "region" and "[SEG]" not in region.conversation[1][1]
    with pytest.raises(tree.TreeError, match="known are segmentation"):
        tree.BiomedDataset(tmp_path, kind="x")


def test_wordings_are_drawn_by_the_seeded_generator(tmp_path):
    coco(tmp_path)
    dataset, asked, questions = tree.BiomedDataset(tmp_path, sentence="random", prompt_style="random"), [], set()
    for seed in range(40):
        random.seed(seed)
        sample = build_dialect("unibiomed").write(dataset[0])
        asked.append(sample.regions[0].phrase)
        questions.add(sample.conversation[0][1].replace(asked[-1], "{}"))
        assert sample.conversation[1][1].count("[SEG]") == 1
    assert set(asked) == {"liver in abdomen ct", "hepatic organ"} and len(questions) == 8
    random.seed(3)
    assert dataset[0].regions[0].phrase == asked[3]
    with pytest.raises(tree.TreeError, match="unknown prompt_style"):
        tree.BiomedDataset(tmp_path, prompt_style="free")


def test_a_user_brings_wordings(tmp_path):
    coco(tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps({"segmentation": ["Mark {}!"]}))
    dialect = build_dialect("grounded")
    sample = dialect.write(tree.BiomedDataset(tmp_path, pools=str(tmp_path / "mine.json"))[0])
    assert sample.conversation[0][1] == "Mark liver in abdomen ct!"
    for number, wrong in enumerate([{"segmentation": ["Mark it!"]}, {"segmentation_answer": ["[SEG] and [SEG]"]}]):
        path = tmp_path / f"wrong{number}.json"
        path.write_text(json.dumps(wrong))
        with pytest.raises(TemplateError, match="entry 0"):
            dialect.write(tree.BiomedDataset(tmp_path, pools=str(path))[0])


def test_small_sets_are_repeated(tmp_path):
    coco(tmp_path)
    dataset = tree.BiomedDataset(tmp_path, min_samples=7)
    assert len(dataset) == 6 and dataset[4].sample_id == dataset[0].sample_id
    assert len(tree.BiomedDataset(tmp_path, repeats=3)) == 6 and len(tree.BiomedDataset(tmp_path, min_samples=1)) == 2
    with pytest.raises(IndexError):
        dataset[6]


def test_no_findings_point_at_nothing(tmp_path):
    coco(tmp_path, sentences=[{"raw": "No findings."}])
    for path in (tmp_path / "train_mask").iterdir():
        path.unlink()
    sample = tree.BiomedDataset(tmp_path, kind="disease")[0]
    assert sample.conversation[1][1] == "no findings." and sample.regions[0].presence == 0
    sample = tree.BiomedDataset(tmp_path, kind="disease", compat="reference")[0]
    assert sample.conversation[1][1] == "It is [SEG]. no findings."


def test_a_region_is_given_by_its_mask_or_by_a_painted_box(tmp_path):
    coco(tmp_path)
    sample = tree.BiomedDataset(tmp_path, kind="region", region_style="box")[0]
    assert not sample.regions and "<region>" in sample.conversation[0][1]
    assert sample.images[0][2, 6].tolist() == [0, 255, 0] and sample.conversation[1][1] == "liver in abdomen ct."
    sample = tree.BiomedDataset(tmp_path, kind="region")[0]
    assert sample.regions[0].mask.any() and "region1" in sample.conversation[0][1]


def test_slices_with_the_object_can_be_preferred(tmp_path):
    volume(tmp_path)
    only = tree.BiomedVolumeDataset(tmp_path, slices=2, foreground_fraction=1.0)[0]
    assert only.regions[0].mask.any(axis=(1, 2)).all()
    drawn = tree.BiomedVolumeDataset(tmp_path, slices=2, prompt_style="random")
    random.seed(0)
    assert len({drawn[0].images[0].tobytes() for _ in range(20)}) == 3


def test_mask_of_wrong_size_is_an_error_unless_asked_for(tmp_path):
    coco(tmp_path)
    save(tmp_path / "train_mask" / "p0_s1_liver.png", np.kron(block(), np.ones((2, 2), np.uint8)))
    with pytest.raises(tree.TreeError, match="resize_masks"):
        tree.BiomedDataset(tmp_path)[0]
    mask = tree.BiomedDataset(tmp_path, resize_masks=True)[0].regions[0].mask
    assert np.array_equal(mask, block() > 0)


def test_medtrinity_and_region_captions(tmp_path):
    coco(tmp_path, caption="A bright liver.")
    sample = tree.MedTrinityDataset(tmp_path)[0]
    assert sample.conversation[1][1] == "A bright liver." and not sample.regions
    assert tree.MedTrinityDataset(tmp_path, masks=True)[0].regions[0].mask.any()


def radgenome(root):
    save(root / "i" / "a.png", picture(1))
    save(root / "m" / "a.png", block())
    save(root / "i" / "b.png", picture(2))
    entry = {"abnormality": "Nodule", "report": "A nodule is SEEN.", "anatomy": "Lung"}
    content = {
        "a": {**entry, "image_file": "i/a.png", "mask_file": "m/a.png"},
        "b": {**entry, "abnormality": "No findings", "image_file": "i/b.png", "mask_file": "m/b.png"},
    }
    (root / "train_parse.json").write_text(json.dumps(content))


def test_radgenome_reports_and_questions(tmp_path):
    radgenome(tmp_path)
    report = tree.RadGenomeDataset(tmp_path)
    answer = report[0].conversation[1][1]
    assert answer == "<p> nodule. a nodule is seen. </p> [SEG]"
    start, end = report[0].regions[0].phrase_span
    assert answer[start:end] == report[0].regions[0].phrase
    assert report[1].regions[0].presence == 0.0 and "[SEG]" not in report[1].conversation[1][1]
    question = tree.RadGenomeDataset(tmp_path, kind="vqa")[0].conversation
    assert "lung" in question[0][1] and question[1][1] == "<p> nodule. </p> [SEG]"


def volume(root, images=("s1.png", "s10.png")):
    for k, name in enumerate(("s1.png", "s2.png", "s10.png")):
        save(root / "v1" / name, picture(k))
    for k, name in enumerate(("s1.png", "s10.png")):
        save(root / "mask" / name, block(k))
    expression = {"exp": "colon tumour", "img_file": [f"v1/{n}" for n in images], "mask_file": ["mask/s1.png"] * 2}
    expression["mask_file"][1] = "mask/s10.png"
    content = {"volumes": {"v1": {"slices": ["s1.png", "s2.png", "s10.png"], "expressions": {"0": expression}}}}
    (root / "meta_train.json").write_text(json.dumps(content))


def test_volume_keeps_slices_without_the_object(tmp_path):
    volume(tmp_path)
    sample = tree.BiomedVolumeDataset(tmp_path)[0]
    assert sample.images[0].shape == (3, *SHAPE)
    assert sample.regions[0].mask.any(axis=(1, 2)).tolist() == [True, False, True]
    assert np.array_equal(sample.regions[0].mask[2], block(1) > 0)  # s10 is not taken for s1
    assert tree.BiomedVolumeDataset(tmp_path, slices=2)[0].images[0].shape[0] == 2
    volume(tmp_path, images=("s1.png", "s7.png"))
    with pytest.raises(tree.TreeError, match="s7.png"):
        tree.BiomedVolumeDataset(tmp_path)[0]


def test_absent_json_lists_what_is_there(tmp_path):
    (tmp_path / "ACDC").mkdir()
    with pytest.raises(FileNotFoundError, match="ACDC"):
        tree.BiomedDataset(tmp_path / "ACDD")


def kinds(report):
    return sorted(kind for _, kind, _ in report.problems)


def test_a_sound_tree_passes(tmp_path):
    for name in ("ACDC", "Disease/Skin"):
        coco(tmp_path / name)
        coco(tmp_path / name, "test", seed=50)
    radgenome(tmp_path / "RadGenome")
    volume(tmp_path / "3D" / "Colon")
    report = check(tmp_path, r"^p(\d+)_")
    assert report.ok, report.table()
    assert report.parts["ACDC train"] == 2 and report.parts["3D/Colon train"] == 1


def test_everything_wrong_in_a_tree_is_found(tmp_path):
    coco(tmp_path, count=4)
    coco(tmp_path, "test", seed=3, count=2)  # p3 is in both, with the same pixels
    (tmp_path / "train" / "p0_s1.png").unlink()
    save(tmp_path / "train_mask" / "p1_s1_liver.png", np.zeros(SHAPE, np.uint8))
    save(tmp_path / "train_mask" / "p2_s1_liver.png", np.ones((3, 3), np.uint8))
    (tmp_path / "test" / "p4_s1.png").write_bytes(b"\x89PNG broken")
    found = kinds(check(tmp_path, r"^p(\d+)_"))
    assert found == ["duplicate", "mask", "mask", "missing file", "patient leakage", "unreadable"]


def test_unpaired_volume_is_a_count_mismatch(tmp_path):
    volume(tmp_path)
    path = tmp_path / "meta_train.json"
    content = json.loads(path.read_text())
    content["volumes"]["v1"]["expressions"]["0"]["mask_file"].pop()
    path.write_text(json.dumps(content))
    assert kinds(check(tmp_path)) == ["count mismatch"]


def test_tokens_without_masks_are_a_count_mismatch(tmp_path, monkeypatch):
    coco(tmp_path)
    monkeypatch.setitem(canonical.ANSWERS, "segmentation", "[SEG] and [SEG].")
    assert kinds(check(tmp_path)) == ["count mismatch"] * 2


def test_the_drawn_tree_is_sound_and_a_part_can_be_checked(tmp_path):
    root = build(tmp_path / "shapes")
    assert check(root, r"([pr](?:train|test)\d+)_|(v(?:train|test)\d)").ok
    assert check(root, limit=1).parts["Shapes train"] == 1
    assert build(root) == root
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(ValueError, match="holds no shapes.json"):
        build(tmp_path / "mine")
