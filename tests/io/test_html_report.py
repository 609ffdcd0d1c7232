"""One-file reports: what is in them, what is not, and that a browser draws them."""

import base64
import gzip
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from clinical import blobs, ct_series, found_in, identifying
from PIL import Image as Pillow

from unimed.geometry import Geometry
from unimed.io.html_report import as_html_report
from unimed.io.result import Prediction
from unimed.structures import Region

TEXT = "The liver is large. A <script>alert(1)</script> cyst of 1.2 cm is seen.\nLäsion 肝臓 & more."


def held(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])


def unpacked(text):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8)


def mask_of(data, number):
    region = data["regions"][number]
    bits = np.unpackbits(unpacked(region["bits"]), bitorder="little")[: np.prod(region["size"])]
    mask = np.zeros(data["shape"], bool)
    where = tuple(slice(a, a + n) for a, n in zip(region["low"], region["size"], strict=True))
    mask[where] = bits.reshape(region["size"], order="F")
    return mask


def volume_result(folder):
    array, geometry = ct_series(folder, (20, 18, 6))
    masks = blobs(array.shape, 2)
    regions = (Region("liver", masks[0], presence=0.9), Region("cyst", masks[1], confidence=0.5), Region("stone"))
    return Prediction(TEXT, regions, geometry, {"segment": 1.5}, "/home/me/unimed-3b"), array


def test_image_and_masks_are_in_the_page_as_they_are(tmp_path):
    prediction, _ = volume_result(tmp_path / "s")
    (path,) = prediction.save(tmp_path, "r", ("html",))
    page = path.read_text(encoding="utf-8")
    data = held(page)
    assert data["shape"] == [20, 18, 6] and unpacked(data["image"]).size == 20 * 18 * 6
    from unimed.io.views import upright

    for number in (0, 1):
        mask, _ = upright(prediction.regions[number].mask, prediction.geometry)
        assert np.array_equal(mask_of(data, number), mask)
        assert mask[tuple(data["regions"][number]["center"])]
    assert "liver" in page and "Liver (10200004, SCT)" in page and "presence 0.90 (not calibrated)" in page
    assert "unimed-3b" in page and "/home" not in page and "segment 1.50" in page and "HU</td>" in page
    assert page.count("research use only") >= 2


def test_sentences_are_linked_and_texts_are_texts(tmp_path):
    prediction, _ = volume_result(tmp_path / "s")
    page = as_html_report(prediction)[".html"].keywords["text"]
    assert re.search(r'<span class="s" data-region="0"[^>]*>The liver is large\. </span>', page)
    assert re.search(r'<span class="s" data-region="1"[^>]*>A &lt;script&gt;alert', page)
    assert "<script>alert" not in page and "Läsion 肝臓 &amp; more." in page


def test_it_fetches_nothing_and_says_nothing_of_the_patient(tmp_path):
    import pydicom

    prediction, _ = volume_result(tmp_path / "s")
    (path,) = prediction.save(tmp_path, "r", ("html",))
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page) and "default-src 'none'" in page
    header = pydicom.dcmread(prediction.geometry.header["files"][0])
    assert found_in(path.read_bytes(), identifying(header)) == []


def test_large_volumes_are_thinned_and_small_things_stay(tmp_path):
    mask = np.zeros((40, 40, 30), bool)
    mask[7, 9, 11] = True
    prediction = Prediction("", (Region("nodule", mask),), Geometry(np.eye(4)))
    image = np.zeros(mask.shape, np.uint8)
    data = held(as_html_report(prediction, image, most_voxels=3000)[".html"].keywords["text"])
    assert np.prod(data["shape"]) <= 3000 and mask_of(data, 0).sum() == 1
    assert data["spacing"] == [float(s) for s in data["step"]]


def test_pictures_show_color_and_boxes(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    regions = (
        Region("polyp", box_xyxy_px=(3, 4, 20, 15), box_std_px=(1, 1, 2, 2)),
        Region("ulcer", image[..., 0] > 200),
    )
    data_page = as_html_report(Prediction("A polyp.", regions), image)[".html"].keywords["text"]
    data = held(data_page)
    assert data["channels"] == 3 and data["shape"] == [40, 30, 1]
    assert np.array_equal(unpacked(data["image"]).reshape(30, 40, 3), image)
    assert "box 3, 4, 20, 15; &plusmn; 1.0, 1.0, 2.0, 2.0 px" in data_page
    empty = as_html_report(Prediction("Nothing is seen.", ()))[".html"].keywords["text"]
    assert "Nothing was pointed at." in empty and held(empty)["image"] is None
    with pytest.raises(ValueError, match="does not fit"):
        as_html_report(Prediction("", (Region("x", np.ones((3, 3), bool)),)), np.zeros((4, 4), np.uint8))


def test_a_viewer_library_is_embedded_where_it_is_given(tmp_path):
    prediction, _ = volume_result(tmp_path / "s")
    library = tmp_path / "niivue.umd.js"
    library.write_text("window.marker = '</script>';")
    page = as_html_report(prediction, niivue=library)[".html"].keywords["text"]
    assert "window.marker = '<\\/script>'" in page
    nifti = held(page)["nifti"]
    nibabel = pytest.importorskip("nibabel")
    labels = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(nifti["labels"])))
    assert set(np.unique(labels.get_fdata())) <= {0, 1, 2}
    with pytest.raises(FileNotFoundError):
        as_html_report(prediction, niivue=tmp_path / "no.js")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_image_and_masks(tmp_path):
    prediction, _ = volume_result(tmp_path / "s")
    image = np.full((20, 18, 6), 40, np.uint8)
    (path,) = prediction.save(tmp_path, "r", ("html",), image=image)
    flags = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
             "--disable-component-update --disable-sync --window-size=1000,900 --virtual-time-budget=8000")  # fmt: skip
    shot = tmp_path / "shot.png"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    subprocess.run([*command, path.as_uri()], capture_output=True, timeout=1800, check=True)
    seen = np.asarray(Pillow.open(shot).convert("RGB")).reshape(-1, 3).astype(int)
    # Grey values as they are, and tinted by the color of each mask.
    assert (np.abs(seen - 40).max(-1) <= 2).sum() > 500
    from unimed.io.findings import findings_of

    for finding in findings_of(prediction)[:2]:
        tint = np.rint(40 + 0.4 * (np.array(finding.color) - 40))
        assert (np.abs(seen - tint).max(-1) <= 3).sum() > 200, finding.label
