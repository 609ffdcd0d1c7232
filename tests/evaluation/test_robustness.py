"""Disturbed images: no wrap-around, five growing severities, truth that moves with the pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimed.evaluation.robustness import SEVERITIES, disturb, reference_noise, retained, run_suite
from unimed.evaluation.robustness import settings as suite
from unimed.metrics.masks import dice


def picture(dtype=np.uint8, channels=3):
    y, x = np.mgrid[:64, :96]
    image = np.zeros((64, 96))
    image[20:44, 30:70] = 0.8
    image += 0.1 * np.sin(x / 3) * np.cos(y / 4) * (image > 0)
    scale = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    image = (np.clip(image, 0, 1) * scale).astype(dtype)
    return np.stack([image] * channels, -1) if channels else image


@pytest.mark.parametrize("kind", SEVERITIES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_severities_grow_and_nothing_wraps(kind, dtype):
    image = picture(dtype, 0 if dtype == np.float32 else 3).repeat(4, 0).repeat(4, 1)
    results = [disturb(image, kind, severity) for severity in range(1, 6)]
    distance = [np.abs(r.image.astype(float) - image).mean() for r in results]
    assert distance == sorted(distance) and distance[0] > 0
    for result in results:
        assert result.image.dtype == image.dtype and result.image.shape == image.shape
        assert result.image.min() >= image.min() and result.image.max() <= max(
            image.max(), 65535 if dtype != np.float32 else 1
        )
    again = disturb(image, kind, 3)
    assert (again.image == results[2].image).all(), "same seed, same image"


def test_noise_keeps_the_background_dark_where_the_published_one_turns_it_bright():
    image = picture()
    ours, published = disturb(image, "noise", 3).image, reference_noise(image, 0.01)
    assert ours[:15].mean() < 20, "about half of the background is clipped to 0"
    assert (published[:15] > 150).mean() > 0.4, "negative values wrapped around"


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["rotation", "letterbox"]), st.integers(1, 5), st.integers(0, 3))
def test_masks_and_boxes_follow_the_pixels(kind, severity, seed):
    image = picture()
    truth = image[..., 0] > 100
    moved = disturb(image, kind, severity, seed=seed)
    assert moved.moves
    seen = moved.image[..., 0] > 100
    assert dice(moved.mask(truth), seen) > 0.95
    x1, y1, x2, y2 = moved.box((30, 20, 70, 44))
    rows, columns = np.nonzero(seen)
    assert x1 - 1 <= columns.min() and columns.max() + 1 <= x2 + 1
    assert y1 - 1 <= rows.min() and rows.max() + 1 <= y2 + 1
    if kind == "letterbox":
        assert (x2 - x1) / 40 == pytest.approx(SEVERITIES["letterbox"][severity - 1])


def test_grey_level_changes_leave_places_alone():
    moved = disturb(picture(), "blur", 5)
    assert not moved.moves and moved.box((1, 2, 3, 4)) == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="bool mask"):
        moved.mask(np.zeros((2, 2), bool))
    assert disturb(picture(), "letterbox", 5).box((-20, -20, -1, -1)) is not None
    assert disturb(picture(), "rotation", 1).box((200, 200, 210, 210)) is None


def test_suite_scores_every_setting_and_names_bad_ones():
    truth = picture()[..., 0] > 100

    def score(index, worse):
        return {"dice": dice(worse.image[..., 0] > 100, worse.mask(truth))}

    rows = run_suite([picture()], score, kinds=["noise", "letterbox"], severities=(1, 5))
    assert [(r["kind"], r["severity"]) for r in rows] == [
        ("none", 0), ("noise", 1), ("noise", 5), ("letterbox", 1), ("letterbox", 5),
    ]  # fmt: skip
    assert rows[0]["dice"] == 1 and retained(rows, "dice")["letterbox"] > retained(rows, "dice")["noise"]
    with pytest.raises(ValueError, match="unknown disturbance.*fog"):
        list(suite(["fog"]))
    with pytest.raises(ValueError, match="severity 1 to 5"):
        disturb(picture(), "noise", 6)
    with pytest.raises(ValueError, match="NaN"):
        disturb(np.array([[np.nan, 1.0]]), "blur", 1)
