import numpy as np
import pytest
from PIL import Image

from unimed.io.overlay import (
    COLORS,
    caption_of,
    contact_sheet,
    draw_regions,
    image_with_captions,
    scale_to_width,
    wrapped,
    write_overlay,
)
from unimed.structures import Region


def square():
    mask = np.zeros((100, 120), dtype=bool)
    mask[40:60, 50:80] = True
    return mask


def test_tint_edge_box_and_caption_are_where_they_belong():
    image = np.full((100, 120), 100, np.uint8)
    drawn = draw_regions(image, [Region("a cell", mask=square(), box_xyxy_px=(20, 50, 40, 90))])
    assert (image == 100).all()
    assert tuple(drawn[40, 50]) == COLORS[0]
    assert tuple(drawn[50, 65]) == tuple(round(0.55 * 100 + 0.45 * c) for c in COLORS[0])
    assert tuple(drawn[50, 20]) == tuple(drawn[89, 39]) == COLORS[0]
    assert tuple(drawn[70, 30]) == (100, 100, 100)
    assert (drawn[:14] != 100).any()


def test_written_overlay_carries_the_notice(tmp_path):
    path = write_overlay(tmp_path / "deep" / "x.png", np.zeros((50, 60, 3), np.uint8), [])
    with Image.open(path) as picture:
        assert picture.width == 60 and picture.info["Notice"] == "research use only"
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


@pytest.mark.parametrize("width", [40, 120, 384, 1024])
def test_captions_stand_below_and_none_is_cut(width):
    phrase = "a rather long phrase of what a radiologist would say of the upper lobe of the left lung"
    image = np.full((50, width), 100, np.uint8)
    plain = image_with_captions(image, [])
    drawn = image_with_captions(image, [Region(phrase, mask=np.zeros((50, width), bool), presence=0.9)])
    assert plain.shape == (50, width, 3) and (drawn[:50] == plain).all(), "captions hide nothing"
    assert (drawn[50:, -3:] == 0).all(), "letters end before the border"
    assert drawn[50:].any() and len(drawn) > 60


def test_letters_grow_with_the_picture():
    heights = [len(image_with_captions(np.zeros((8, w), np.uint8), [Region("cell")])) - 8 for w in (200, 1024, 4096)]
    assert heights[0] < heights[1] < heights[2]


def test_lines_fit_and_what_is_left_out_shows():
    assert wrapped("one two", 500, 12) == ["one two"] and wrapped("", 100, 12) == [""]
    lines = wrapped("word " * 100, 60, 12)
    assert len(lines) == 3 and lines[-1].endswith("...")
    assert "".join(wrapped("x" * 40, 100, 12, most=99)) == "x" * 40, "a word longer than a line is broken"


def test_captions_say_presence_and_that_nothing_is_drawn():
    empty = np.zeros((4, 4), bool)
    assert caption_of(Region("spleen", mask=~empty)) == "spleen"
    assert caption_of(Region("spleen", mask=empty, presence=0.97)) == "spleen (presence 0.97, nothing drawn)"


def test_contact_sheets_keep_columns():
    cells = [np.full((10, w, 3), w, np.uint8) for w in (20, 30)]
    sheet = contact_sheet([cells, cells[::-1]], note="", gap=4)
    assert sheet.shape == (28, 64, 3) and (sheet[:10, :20] == 20).all() and (sheet[14:24, 34:54] == 20).all()
