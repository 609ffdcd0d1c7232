import numpy as np
import pytest

from unimed import Geometry, Region, Sample


@pytest.mark.parametrize(
    "arguments",
    [
        {"mask": np.zeros((2, 2), np.uint8)},
        {"mask": np.zeros(2, bool)},
        {"box_xyxy_px": (3, 0, 1, 2)},
        {"box_xyxy_px": (0, 0, float("nan"), 2)},
        {"presence": 1.2},
        {"confidence": -0.1},
    ],
)
def test_impossible_regions_are_refused_by_name(arguments):
    with pytest.raises(ValueError, match="left kidney"):
        Region("left kidney", **arguments)


def test_spacing_and_orientation_follow_the_affine():
    geometry = Geometry([[0, 0, 3, 0], [-1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    assert geometry.spacing == (1, 2, 3) and geometry.orientation == "PSR"


def test_the_patient_does_not_show_in_logs():
    sample = Sample((np.zeros((2, 2)),), Geometry.pixels(), "case-1", patient_id="Jane Doe")
    assert "Jane" not in repr(sample)


def test_a_geometry_cannot_be_changed():
    source = np.eye(4)
    geometry = Geometry(source)
    source[0, 0] = 5
    assert geometry.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 2
