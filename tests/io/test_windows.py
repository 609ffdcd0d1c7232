import numpy as np
import pytest

from unimed.io.windows import CT_WINDOWS_HU, ct_to_uint8, percentiles_to_uint8, window_to_uint8


@pytest.mark.parametrize("site", CT_WINDOWS_HU)
def test_window_ends_map_to_black_and_white(site):
    level, width = CT_WINDOWS_HU[site]
    values = np.array([-3000, level - width / 2, level, level + width / 2, 3000])
    black, low, middle, high, white = ct_to_uint8(values, site)
    assert (black, low, high, white) == (0, 0, 255, 255) and middle in (127, 128)


def test_percentiles_ignore_empty_border_and_outliers():
    inside = np.linspace(100, 200, 1001)
    inside[-1] = 1e6
    framed = np.concatenate((np.zeros(5000), inside))
    mapped = percentiles_to_uint8(framed)[5000:]
    assert abs(int(mapped[500]) - 127) <= 2 and mapped[-1] == 255
    assert percentiles_to_uint8(framed, ignore_zero=False)[5000] > 100


@pytest.mark.parametrize("array", [np.zeros((3, 3)), np.full((3, 3), 7)])
def test_a_constant_image_is_black(array):
    assert not percentiles_to_uint8(array).any()


def test_a_16_bit_image_is_not_clipped_to_white():
    array = np.linspace(1000, 60000, 100).astype(np.uint16)
    assert 20 < np.unique(percentiles_to_uint8(array)).size


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="brain"):
        ct_to_uint8(np.zeros(2), "elbow")
    with pytest.raises(ValueError, match="width"):
        window_to_uint8(np.zeros(2), 0, 0)
    with pytest.raises(ValueError, match="percentiles"):
        percentiles_to_uint8(np.zeros(2), 60, 40)
