import numpy as np
import pytest
from PIL import Image

from unimed.io.overlay import COLOURS, draw_regions, scale_to_width, write_overlay
from unimed.structures import Region


def square():
    mask = np.zeros((100, 120), dtype=bool)
    mask[40:60, 50:80] = True
    return mask


def test_tint_edge_box_and_caption_are_where_they_belong():
    image = np.full((100, 120), 100, np.uint8)
    drawn = draw_regions(image, [Region("a cell", mask=square(), box_xyxy_px=(20, 50, 40, 90))])
    assert (image == 100).all()
    assert tuple(drawn[40, 50]) == COLOURS[0]
    assert tuple(drawn[50, 65]) == tuple(round(0.55 * 100 + 0.45 * c) for c in COLOURS[0])
    assert tuple(drawn[50, 20]) == tuple(drawn[89, 39]) == COLOURS[0]
    assert tuple(drawn[70, 30]) == (100, 100, 100)
    assert (drawn[:14] != 100).any()


def test_written_overlay_carries_the_notice(tmp_path):
    path = write_overlay(tmp_path / "deep" / "x.png", np.zeros((50, 60, 3), np.uint8), [])
    with Image.open(path) as picture:
        assert picture.size == (60, 64) and picture.info["Notice"] == "research use only"
        assert np.asarray(picture)[50:].any()


def test_images_that_cannot_be_shown_are_refused():
    with pytest.raises(ValueError, match="window it first"):
        draw_regions(np.zeros((4, 4), np.uint16), [])
    with pytest.raises(ValueError, match="does not fit"):
        draw_regions(np.zeros((4, 4), np.uint8), [Region("x", mask=square())])


def test_image_and_regions_are_scaled_together():
    mask = np.zeros((20, 10), bool)
    mask[4:8, 2:5] = True
    image, (region,) = scale_to_width(
        np.zeros((20, 10, 3), np.uint8), [Region("a", mask=mask, box_xyxy_px=(2, 4, 5, 8))], 40
    )
    assert image.shape == (80, 40, 3) and region.mask.shape == (80, 40)
    assert region.mask[16:32, 8:20].all() and region.mask.sum() == 16 * 12
    assert region.box_xyxy_px == (8, 16, 20, 32)
