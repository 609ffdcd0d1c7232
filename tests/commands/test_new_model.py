"""Images on which a new small model measures its vision encoder."""

import json

import numpy as np
from PIL import Image

from unimed.commands import new_model
from unimed.geometry import Geometry
from unimed.io.write import write_nifti


def folder_of(root, records):
    (root / "records").mkdir(parents=True)
    base = dict(task="vqa", question="What is it?", answer="An image.", regions=[], patient_id="p", split="train")
    lines = [json.dumps(base | dict(id=str(number)) | record) for number, record in enumerate(records)]
    (root / "records" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return root


def test_different_images_are_measured_and_broken_ones_left_to_the_training(tmp_path, monkeypatch):
    for number in range(6):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    records = [dict(image=f"{number}.png") for number in (0, 0, 1, 2, 3, 4, 5)] + [dict(image="../away.png")]
    folder = folder_of(tmp_path, records)
    seen = [int(image.flat[0]) for image in new_model._training_images(folder)]
    assert seen == [0, 1, 2, 4, 5]
    monkeypatch.setattr(new_model, "MEASURED_IMAGES", 2)
    assert [int(image.flat[0]) for image in new_model._training_images(folder)] in ([0], [0, 3], [0, 4])


def test_a_set_of_volumes_gives_slices(tmp_path):
    write_nifti(tmp_path / "v.nii.gz", np.arange(60, dtype=np.int16).reshape(3, 4, 5), Geometry(np.eye(4)))
    folder = folder_of(tmp_path, [dict(task="volume", volume="v.nii.gz", modality="MRI")])
    (slice_,) = new_model._training_images(folder)
    assert slice_.ndim == 2 and slice_.dtype == np.uint8
