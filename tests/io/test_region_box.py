import random

import numpy as np
import pytest
from golden_files import SMALL
from PIL import Image

from unimed.io.region_box import draw_box

GOLDEN = SMALL / "unibiomed" / "metrics"


def test_the_frame_is_the_recorded_one():
    given = np.load(GOLDEN / "box2image_in.npz")
    recorded = np.asarray(Image.open(GOLDEN / "box2image_out.png"))
    assert np.array_equal(draw_box(given["image"], given["mask"] > 0), recorded)


def test_small_parts_are_framed_only_where_there_is_no_larger_one():
    mask = np.zeros((80, 80), bool)
    mask[2:10, 2:10] = mask[20:50, 20:50] = mask[60:75, 40:78] = True
    grey = np.zeros((80, 80), np.uint8)
    assert draw_box(grey, mask)[20, 30].tolist() == [0, 255, 0]  # the largest
    drawn = {draw_box(grey, mask, random.Random(seed)).tobytes() for seed in range(8)}
    assert len(drawn) == 2  # either of the large ones
    mask[10:] = False
    assert draw_box(grey, mask)[2, 5].tolist() == [0, 255, 0]
    with pytest.raises(ValueError, match="cannot be framed"):
        draw_box(grey, np.zeros((80, 80), bool))
