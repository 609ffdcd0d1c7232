"""Pictures in the squares of the encoders, compared with what the published code made of them."""

import json

import numpy as np
import pytest
import torch
from closeness import LAYER, assert_close
from golden_files import SMALL
from safetensors.torch import load_file

from unimed.models.checkpoints.lisa import CLIP_MEAN, CLIP_STD
from unimed.models.grounded.framing import frame, one_tile, place
from unimed.models.heads.mask import resize_mask_logits

GOLDEN = SMALL / "umedground"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"sq640": (640, 640), "h480w600": (480, 600), "sq1024": (1024, 1024), "h333w211": (333, 211)}


def picture(height, width):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((3 * x + 5 * y + 41 * c + (x * y) // 7) % 256).astype(np.uint8)


@pytest.mark.parametrize("name", SIZES)
def test_pictures_are_prepared_as_published(name):
    recorded = load_file(GOLDEN / "image_preprocess.safetensors")
    image = picture(*SIZES[name])
    sums = json.loads((GOLDEN / "image_preprocess.json").read_text())[name]
    clip = one_tile(image, 224, "crop", CLIP_MEAN, CLIP_STD)[0]
    assert_close(clip[:, ::16, ::16], recorded[f"{name}.clip_strided16"], relative=LAYER)
    assert abs(float(clip.double().sum()) - sums["clip_sum"]) < 0.1
    where = frame(image.shape[:2], 1024, "pad", 640)
    square = place(image, where, "pad", MEAN, STD)
    assert square.shape == (3, 1024, 1024) and list(where.content_hw) == sums["resized_hw"]
    assert_close(square[:, ::64, ::64], recorded[f"{name}.sam_padded_strided64"], relative=LAYER)
    assert abs(float(square.double().sum()) - sums["sam_sum"]) < 1


def test_frames_map_boxes_there_and_back():
    box = np.array([30, 10, 90, 50], dtype=np.float32)
    for fit, content, unit in (("squash", None, [120, 60]), ("pad", None, [120, 120]), ("pad", 80, [120, 120])):
        where = frame((60, 120), 128, fit, content)
        assert list(where.unit_px) == unit
        torch.testing.assert_close(box / where.box_unit_px * where.box_unit_px, box)
    # The published square: a box normalised by the 640 px of the longer side is the same share of ours.
    where = frame((480, 600), 1024, "pad", 640)
    assert where.content_hw == (512, 640)
    assert np.allclose(box * where.scale / 640, box / where.box_unit_px)


def test_masks_of_padded_pictures_lose_the_padding():
    where = frame((40, 80), 64, "pad")
    square = torch.full((1, 64, 64), -5.0)
    square[:, 8:16, 16:48] = 5.0
    mask = resize_mask_logits(square, (40, 80), 64, where.content_hw)[0] > 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (10, 20, 20, 60)


def test_a_letterboxed_tile_shows_everything():
    image = np.zeros((50, 200, 3), dtype=np.uint8)
    image[:, :10] = 255
    cropped = one_tile(image, 56, "crop", (0, 0, 0), (1, 1, 1))
    padded = one_tile(image, 56, "pad", (0, 0, 0), (1, 1, 1))
    assert cropped.max() < 0.05 and padded.max() > 0.9 and padded.shape == (1, 3, 56, 56)
