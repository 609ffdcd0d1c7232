"""What is particular of the sets that benchmarks read: shared images, choices, axes, held-out scans; mistakes named."""

import json

import nibabel
import numpy as np
import pytest
from evaluation.harness import layouts

from unimed.data.readers import vqa_sets
from unimed.data.readers.padchest_gr import PadChestGrDataset
from unimed.data.readers.uni_med import FieldError
from unimed.data.readers.volume_sets import DecathlonDataset, ReXGroundingCtDataset, TotalSegmentatorDataset, held_out
from unimed.geometry import reorient
from unimed.io.read import read
from unimed.io.write import write_nifti


def test_no_image_of_vqa_rad_is_in_training_and_test(tmp_path):
    layouts.vqa_rad(tmp_path)
    parts = {split: vqa_sets.VqaRadDataset(tmp_path, split=split) for split in ("train", "test")}
    images = {split: {part[i].patient_id for i in range(len(part))} for split, part in parts.items()}
    assert images == {"train": {"synpic1.jpg"}, "test": {"synpic0.jpg", "synpic2.jpg"}}
    assert parts["train"].overlapping == 1 and len(parts["test"]) == 3
    published = vqa_sets.VqaRadDataset(tmp_path, split="train", shared_images="keep")
    assert {published[i].patient_id for i in range(len(published))} & images["test"], "as published they share images"
    with pytest.raises(ValueError, match="'drop' or 'keep'"):
        vqa_sets.VqaRadDataset(tmp_path, shared_images="both")


def test_choices_are_shown_and_the_answer_is_the_text_of_the_right_one(tmp_path):
    layouts.pmc_vqa(tmp_path)
    sample = vqa_sets.PmcVqaDataset(tmp_path, split="test")[1]
    assert sample.labels["choices"] == ["CT", "MRI", "X-ray", "PET"] and sample.conversation[1][1] == "MRI"
    assert "\nB. MRI\n" in sample.conversation[0][1] and sample.conversation[0][1].endswith(vqa_sets.ASKED)
    assert sample.patient_id == "PMC01"
    path = tmp_path / "test_clean.csv"
    path.write_text(path.read_text().replace(",A\n", ",Z\n").replace(",A\r\n", ",Z\r\n"))
    with pytest.raises(FieldError, match="record 0: the answer 'Z' is none of the choices"):
        vqa_sets.PmcVqaDataset(tmp_path, split="test")


def test_questions_with_several_images_and_without_choices(tmp_path):
    layouts.medxpertqa(tmp_path / "a")
    sample = vqa_sets.MedXpertQaDataset(tmp_path / "a", split="test")[1]
    assert len(sample.images) == 2 and sample.conversation[1][1] == "cyst"
    assert "Answer Choices" not in sample.conversation[0][1]
    layouts.mmmu(tmp_path / "b")
    dataset = vqa_sets.MmmuMedDataset(tmp_path / "b")
    assert [dataset[i].conversation[1][1] for i in range(5)] == ["lung", "7", "lung", "lung", "lung"]
    assert "(image 1)" in dataset[0].conversation[0][1]


def test_sentences_have_no_one_or_many_boxes_in_pixels(tmp_path):
    layouts.padchest_gr(tmp_path)
    counts = {kind: [len([r for r in PadChestGrDataset(tmp_path, "test", kind)[i].regions if r.box_xyxy_px])
                     for i in range(2)] for kind in ("zero", "one", "many")}  # fmt: skip
    assert counts == {"zero": [0, 0], "one": [1, 1], "many": [2, 2]}
    sample = PadChestGrDataset(tmp_path, "test", "one")[0]
    assert sample.regions[0].box_xyxy_px == pytest.approx((6, 8, 24, 24)) and sample.patient_id == "pat1"
    path = tmp_path / "grounded_reports_20240819.json"
    path.write_text(path.read_text().replace("[0.1, 0.2, 0.4, 0.6]", "[10, 20, 40, 60]"))
    with pytest.raises(FieldError, match="no box in fractions"):
        PadChestGrDataset(tmp_path, "test")


def test_masks_lie_on_their_scans_whatever_the_axes(tmp_path):
    layouts.totalsegmentator(tmp_path)
    before = TotalSegmentatorDataset(tmp_path, "test", ["liver"])[0]
    assert before.regions[0].phrase == "liver" and before.images[0].shape == (4, 10, 12)
    path = tmp_path / "s0001/segmentations/liver.nii.gz"
    write_nifti(path, *(lambda a, g: (np.ascontiguousarray(a), g))(*reorient(*read(path), "PSL")))
    after = TotalSegmentatorDataset(tmp_path, "test", ["liver"])[0]
    assert (after.regions[0].mask == before.regions[0].mask).all()
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4)), path)
    with pytest.raises(FieldError, match="scan s0001"):
        TotalSegmentatorDataset(tmp_path, "test", ["liver"])[0]


def test_held_out_scans_are_the_same_everywhere_and_in_no_other_part(tmp_path):
    layouts.decathlon(tmp_path)
    parts = {split: {r["id"] for r in DecathlonDataset(tmp_path, split).records} for split in ("train", "test")}
    assert not parts["train"] & parts["test"] and all(held_out(name) for name in parts["test"])
    assert held_out("liver_102") == held_out("liver_102")
    assert 0.15 < np.mean([held_out(f"liver_{n}") for n in range(2000)]) < 0.25
    sample = DecathlonDataset(tmp_path, "test")[0]
    assert [(r.phrase, r.presence) for r in sample.regions] == [("liver", 1.0), ("cancer", 0.0)]
    with pytest.raises(FieldError, match="no label is called 'spleen'"):
        DecathlonDataset(tmp_path, "test", ["spleen"])


def test_findings_lie_along_the_first_or_the_last_axis(tmp_path):
    layouts.rexgroundingct(tmp_path)
    first = ReXGroundingCtDataset(tmp_path, "test")[0]
    path = tmp_path / "segmentations/train_2_a_1.nii.gz"
    masks = np.asarray(nibabel.load(path).dataobj)
    layouts.nifti(path, np.ascontiguousarray(np.moveaxis(masks, 0, -1)))
    last = ReXGroundingCtDataset(tmp_path, "test")[0]
    assert first.patient_id == "train_2" and [r.phrase for r in first.regions] == ["A nodule.", "An effusion."]
    assert all((a.mask == b.mask).all() for a, b in zip(first.regions, last.regions, strict=True))
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["test"][0]["findings"]["2"] = "A mass."
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(FieldError, match="3 findings"):
        ReXGroundingCtDataset(tmp_path, "test")[0]
