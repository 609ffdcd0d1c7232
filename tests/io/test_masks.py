"""Masks and label images as tools store them: which pixels are meant, and what is remarked."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from unimed.geometry import Geometry
from unimed.io.errors import MaskError
from unimed.io.images import load
from unimed.io.masks import load_labels, load_mask, whole_numbers
from unimed.io.turns import turned
from unimed.io.write import write_nifti

#: 100 px of label 1 and 400 px of label 2.
LABELS = np.zeros((64, 48), np.uint8)
LABELS[10:20, 10:20], LABELS[30:50, 20:40] = 1, 2
MASK = LABELS > 0


def palette_picture(colours, labels=LABELS):
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette(list(colours) + [0] * (768 - len(colours)))
    return picture


def written(picture, path, **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path


FORMS = {
    "0 and 1": lambda p: written(MASK.astype(np.uint8), p / "m.png"),
    "0 and 255": lambda p: written(MASK.astype(np.uint8) * 255, p / "m.png"),
    "1 bit": lambda p: written(Image.fromarray(MASK), p / "m.png"),
    "labels": lambda p: written(LABELS, p / "m.png"),
    "16 bit labels": lambda p: written(LABELS.astype(np.uint16) * 300, p / "m.png"),
    "palette": lambda p: written(palette_picture([0, 0, 0, 128, 0, 0, 0, 128, 0]), p / "m.png"),
    "palette with blue": lambda p: written(palette_picture([0, 0, 0, 0, 0, 255, 0, 9, 0]), p / "m.png"),
    "palette gif": lambda p: written(palette_picture([0, 0, 0, 128, 0, 0, 0, 128, 0]), p / "m.gif"),
    "palette, white first": lambda p: written(palette_picture([255, 255, 255, 0, 0, 0], 1 - MASK.astype(np.uint8)),
                                              p / "m.png"),
    "blue": lambda p: written(np.dstack([0 * LABELS, 0 * LABELS, LABELS * 90]), p / "m.png"),
    "green": lambda p: written(np.dstack([0 * LABELS, LABELS * 90, 0 * LABELS]), p / "m.tif"),
    "white on transparent white": lambda p: written(np.dstack([np.full((64, 48, 3), 255, np.uint8),
                                                               MASK.astype(np.uint8) * 255]), p / "m.png"),
    "black in the opacity": lambda p: written(np.dstack([np.zeros((64, 48, 3), np.uint8),
                                                         MASK.astype(np.uint8) * 255]), p / "m.png"),
    "opaque colours": lambda p: written(np.dstack([LABELS * 90, LABELS, LABELS, LABELS // 3 + 255]), p / "m.png"),
    "jpeg": lambda p: written(MASK.astype(np.uint8) * 255, p / "m.jpg", quality=60),
    "colour jpeg": lambda p: written(np.dstack([MASK.astype(np.uint8) * 255] * 3), p / "m.jpg", quality=60),
    "lossy webp": lambda p: written(MASK.astype(np.uint8) * 255, p / "m.webp", quality=50),
    "lossless webp": lambda p: written(MASK.astype(np.uint8), p / "m.webp", lossless=True),
    "float probabilities": lambda p: (tifffile.imwrite(p / "m.tif", (MASK * 0.9 + 0.05).astype(np.float32)),
                                      p / "m.tif")[1],
    "float labels": lambda p: (tifffile.imwrite(p / "m.tif", LABELS.astype(np.float32)), p / "m.tif")[1],
    "white is zero": lambda p: (tifffile.imwrite(p / "m.tif", (~MASK).astype(np.uint8) * 255,
                                                 photometric="miniswhite"), p / "m.tif")[1],
}  # fmt: skip
#: What lossy forms do to edges.
NEARLY = {"jpeg": 30, "colour jpeg": 30, "lossy webp": 30}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", ["path", "bytes", "PIL"])
def test_every_form_shows_the_same_pixels(tmp_path, form, door):
    path = FORMS[form](tmp_path)
    with Image.open(path) if door == "PIL" else io.BytesIO(path.read_bytes()) as stream:
        source = {"path": path, "bytes": path.read_bytes(), "PIL": stream}[door]
        mask, _ = load_mask(source)
    assert mask.dtype == np.bool_ and (mask != MASK).sum() <= NEARLY.get(form, 0)


@pytest.mark.parametrize("values", [MASK, LABELS, MASK.astype(np.uint8)[..., None], LABELS.astype(np.int64)])
def test_arrays(values):
    assert np.array_equal(load_mask(values)[0], MASK)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("labels", "2 labels (1, 2); all of them count"),
        ("palette", "2 palette entries (1, 2)"),
        ("palette, white first", "entry 0 is not black"),
        ("blue", "2 colours"),
        ("jpeg", "a JPEG"),
        ("lossy webp", "a lossy WebP"),
        ("float probabilities", "cut at one half"),
        ("black in the opacity", "its opacity is taken"),
    ],
)
def test_what_should_be_looked_at_is_remarked(tmp_path, form, words):
    assert any(words in one for one in load_mask(FORMS[form](tmp_path))[1])


@pytest.mark.parametrize("form", ["0 and 1", "0 and 255", "1 bit", "white on transparent white", "white is zero"])
def test_ordinary_masks_are_not_remarked(tmp_path, form):
    assert load_mask(FORMS[form](tmp_path))[1] == ()


def test_inverted_and_full_masks_are_remarked():
    assert "may be inverted" in load_mask(~MASK)[1][0]
    assert "every pixel is set" in load_mask(np.ones((9, 9), np.uint8))[1][0]
    wide = np.zeros((20, 20), bool)
    wide[1:19, 1:19] = True  # large, but it leaves the border free
    assert load_mask(wide)[1] == ()
    soft = np.clip(np.add.outer(np.arange(64), np.arange(48)) * 4, 0, 255).astype(np.uint8)
    assert "soft or resized edge" in load_mask(soft)[1][0]


def test_one_label_of_several(tmp_path):
    for form in ("labels", "palette", "float labels"):
        path = FORMS[form](tmp_path)
        assert np.array_equal(load_mask(path, label=2)[0], LABELS == 2)
    assert np.array_equal(load_mask(FORMS["palette"](tmp_path), label=(0, 128, 0))[0], LABELS == 2)
    assert np.array_equal(load_mask(FORMS["blue"](tmp_path), label=(0, 0, 90))[0], LABELS == 1)
    with pytest.raises(MaskError, match="red, green, blue"):
        load_mask(FORMS["blue"](tmp_path), label=1)
    with pytest.raises(MaskError, match="give a number"):
        load_mask(FORMS["labels"](tmp_path), label=(1, 2, 3))


def test_label_images(tmp_path):
    for form in ("labels", "palette", "float labels"):
        assert np.array_equal(load_labels(FORMS[form](tmp_path), shape=(64, 48))[0], LABELS)
    assert np.array_equal(load_labels(FORMS["16 bit labels"](tmp_path))[0], LABELS.astype(int) * 300)
    assert "JPEG" in load_labels(FORMS["jpeg"](tmp_path))[1][0]
    with pytest.raises(MaskError, match="colours are no labels"):
        load_labels(FORMS["blue"](tmp_path))
    with pytest.raises(MaskError, match=r"\(64, 48\), its image \(3, 3\)"):
        load_labels(FORMS["labels"](tmp_path), shape=(3, 3))
    volume = np.arange(24).reshape(2, 3, 4).astype(np.float32)
    path = write_nifti(tmp_path / "v.nii.gz", volume, Geometry(np.eye(4)))
    assert load_labels(path)[0].dtype.kind == "i" and np.array_equal(load_labels(path)[0], volume)
    with pytest.raises(MaskError, match="whole numbers"):
        whole_numbers(volume + 0.5)


def turned_image(path, orientation, values):
    picture = Image.fromarray(values)
    exif = picture.getexif()
    exif[274] = orientation
    picture.save(path, exif=exif)
    return load(path)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_is_turned_with_its_image(tmp_path, orientation):
    """Drawn on the stored picture, on the upright one, or stored with the same orientation."""
    image = turned_image(tmp_path / "i.png", orientation, LABELS)
    upright = turned(MASK, orientation)
    same = turned_image(tmp_path / "m.png", orientation, MASK.astype(np.uint8) * 255)
    for mask in (MASK, upright, tmp_path / "m.png"):
        assert np.array_equal(load_mask(mask, image=image)[0], upright)
    assert np.array_equal(same.to_source(upright), MASK)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_turn_that_cannot_be_told_is_refused(tmp_path, orientation):
    image = turned_image(tmp_path / "i.png", orientation, LABELS)
    with pytest.raises(MaskError, match="before or after that turn"):
        load_mask(MASK, image=image)
    square = turned_image(tmp_path / "s.png", 6, LABELS[:48])
    with pytest.raises(MaskError, match="before or after that turn"):
        load_mask(MASK[:48], image=square)
    turned_image(tmp_path / "m.png", 5, MASK.astype(np.uint8))
    with pytest.raises(MaskError, match="its image has"):
        load_mask(tmp_path / "m.png", image=image)


def test_sizes():
    with pytest.raises(MaskError, match=r"is \(64, 48\), its image \(32, 24\)"):
        load_mask(MASK, shape=(32, 24))
    small, said = load_mask(MASK, shape=(32, 24), resize=True)
    assert small.shape == (32, 24) and said == ("resized to its image",)
    with pytest.raises(MaskError, match="NaN"):
        load_mask(np.full((4, 4), np.nan))
    with pytest.raises(MaskError, match="no mask"):
        load_mask(np.zeros((4, 5, 6)))


def test_the_first_channel_where_published_readers_are_followed(tmp_path):
    assert not load_mask(FORMS["blue"](tmp_path), compat="reference")[0].any()
    assert load_mask(FORMS["jpeg"](tmp_path), compat="reference")[0].sum() >= load_mask(tmp_path / "m.jpg")[0].sum()
