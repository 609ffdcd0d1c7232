"""The pages in headless Chromium, with clicks; nothing is fetched from anywhere else."""

import threading

import nibabel
import numpy as np
import pytest
from small_models import tiny_model

pytest.importorskip("gradio")
pytest.importorskip("fastapi")

from PIL import Image  # noqa: E402
from serve.browser import chromium, shot  # noqa: E402
from serve.serving import application, served, speaking  # noqa: E402

from unimed.serve.pages import pages_door  # noqa: E402

ANSWER = "the <p> nuclei </p> [SEG] and <p> a lesion </p> [SEG]."


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    model = speaking(tiny_model(), ANSWER)
    with served(application(folder, model, doors=[pages_door], tokens=False, max_new_tokens=40)) as server:
        server.folder, server.model = folder, model
        yield server


@pytest.fixture
def page(browser, live):
    context = browser.new_context(viewport={"width": 1400, "height": 1300}, accept_downloads=True)
    page = context.new_page()
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(f"{live.url}/", wait_until="domcontentloaded")
    page.wait_for_selector("#ask", timeout=60_000)
    yield page
    elsewhere = [url for url in page.asked if not url.startswith((live.url, "data:", "blob:", "about:"))]
    assert not elsewhere, elsewhere
    context.close()


def picture(folder, name="cells.png"):
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(folder / name)
    return str(folder / name)


def upload(page, path):
    page.locator("input[type=file]").first.set_input_files(path)
    page.wait_for_function("document.querySelector('#told')?.innerText.includes(' of ')", timeout=60_000)


def done(page):
    page.wait_for_function("document.querySelector('#state')?.innerText.includes('Done')", timeout=60_000)


def test_a_question_by_keyboard_gives_words_and_places_in_the_same_colors(page, live, tmp_path):
    upload(page, picture(tmp_path))
    page.locator("#question textarea, #question input").first.fill("Segment the nuclei.")
    page.keyboard.press("Enter")
    done(page)
    words = page.locator("#answer").text_content()
    assert "nuclei" in words and "a lesion" in words and "r1" in words and "r2" in words
    page.wait_for_selector("#shown img", timeout=20_000)
    legend = page.locator("#shown").text_content()
    assert "r1 nuclei" in legend and "r2 a lesion" in legend
    found = page.evaluate("""() => {
      const color = (root) => [...document.querySelectorAll(root + ' *')]
        .map((e) => getComputedStyle(e).backgroundColor).filter((c) => c.startsWith('rgb(230, 159, 0')
          || c.startsWith('rgba(230, 159, 0') || c.startsWith('rgb(86, 180, 233') || c.startsWith('rgba(86, 180, 233'));
      return [color('#answer').length, color('#shown').length]; }""")
    assert min(found) >= 2, found  # Okabe-Ito orange and sky blue, in both
    shot(page, "answer")
    # A second question goes on counting, and may speak of the first answer's region.
    page.locator("#question textarea, #question input").first.fill("What is @r1?")
    page.locator("#ask").click()
    page.wait_for_function("document.querySelector('#answer')?.textContent.includes('r3')", timeout=60_000)


def test_clicks_set_points_and_boxes_as_the_region_of_a_question(page, live, tmp_path):
    upload(page, picture(tmp_path))
    image = page.locator("#image img").first
    image.wait_for(timeout=20_000)
    place = image.bounding_box()
    image.click(position={"x": place["width"] * 0.25, "y": place["height"] * 0.5})
    page.wait_for_function("document.querySelector('#region textarea, #region input').value.includes(',')")
    value = page.locator("#region textarea, #region input").first.input_value()
    x, y = map(float, value.split(","))
    assert 0 <= x < 128 and 0 <= y < 96
    page.locator("#how input[value=box]").check()
    image.click(position={"x": place["width"] * 0.75, "y": place["height"] * 0.75})
    page.wait_for_function("document.querySelector('#region textarea, #region input').value.split(',').length === 4")
    asked, usual = [], live.core.submit
    live.core.submit = lambda model, question, *a, **k: (asked.append(question), usual(model, question, *a, **k))[1]
    try:
        page.locator("#question textarea, #question input").first.fill("What is region1?")
        page.locator("#ask").click()
        page.wait_for_function("!document.querySelector('#state')?.innerText.includes('Ready')", timeout=60_000)
        page.wait_for_timeout(1500)
    finally:
        del live.core.submit
    (question,) = asked
    x1, y1, x2, y2 = question.regions[0].box_xyxy_px
    assert (x1, y1) == (x, y) and x2 > x1 and y2 > y1


def test_files_of_every_kind_asked_for_can_be_downloaded(page, tmp_path):
    upload(page, picture(tmp_path))
    page.locator("#question textarea, #question input").first.fill("Segment the nuclei.")
    page.locator("#ask").click()
    done(page)
    page.locator("#save").click()
    page.wait_for_selector("#saved a", timeout=30_000)
    names = page.locator("#saved").inner_text()
    assert ".json" in names and ".png" in names
    with page.expect_download() as download:
        page.locator("#saved a").first.click()
    assert download.value.path().stat().st_size > 100


def test_a_volume_is_shown_with_slices_before_and_after_the_question(page, tmp_path):
    path = tmp_path / "scan.nii.gz"
    values = np.random.default_rng(0).normal(40, 60, (24, 20, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 3, 1])), path)
    upload(page, str(path))
    assert "volume of 24 x 20 x 6" in page.locator("#told").inner_text()
    frame = page.frame_locator("#viewer iframe")
    frame.locator("canvas").first.wait_for(timeout=20_000)
    assert frame.locator("canvas").count() >= 3 and frame.locator("input[type=range]").count() >= 3
    page.locator("#question textarea, #question input").first.fill("Segment the nuclei.")
    page.locator("#ask").click()
    done(page)
    page.wait_for_function("document.querySelector('#viewer iframe')?.srcdoc.includes('nuclei')")
    frame.locator("input[type=range]").first.focus()
    page.keyboard.press("ArrowRight")
    shot(page, "volume")


def test_work_can_be_cancelled(page, live, tmp_path):
    upload(page, picture(tmp_path, "long.png"))
    gate = threading.Event()
    blocker = live.core.call("tiny", lambda model: gate.wait(300))  # the question waits behind it
    try:
        page.locator("#question textarea, #question input").first.fill("Say much.")
        page.locator("#ask").click()
        page.wait_for_function("document.querySelector('#state')?.innerText.includes('Waiting')", timeout=120_000)
        page.locator("#cancel").click()
        page.wait_for_function("document.querySelector('#state')?.innerText.includes('Cancelled')", timeout=120_000)
    finally:
        gate.set()
        blocker.future.result(60)


def test_what_is_wrong_is_one_line_without_markup(page):
    page.locator("#question textarea, #question input").first.fill("<img src=x onerror=alert(1)> @r7")
    page.locator("#ask").click()
    page.get_by_text("no earlier turn has the region").first.wait_for(timeout=20_000)
    assert page.locator("img[src=x]").count() == 0


def test_a_login_gives_every_owner_their_own(browser, tmp_path):
    from serve.serving import TOKENS

    with served(application(tmp_path, tiny_model(), doors=[pages_door])) as server:
        page = browser.new_page()
        page.goto(f"{server.url}/pages/", wait_until="domcontentloaded")
        fields = page.locator("input")
        fields.first.wait_for(timeout=60_000)
        assert page.locator("#ask").count() == 0
        fields.nth(0).fill("anna")
        fields.nth(1).fill(TOKENS["ben"])
        page.get_by_role("button", name="Login").click()
        page.wait_for_timeout(1500)
        assert page.locator("#ask").count() == 0
        fields.nth(0).fill("anna")
        fields.nth(1).fill(TOKENS["anna"])
        page.get_by_role("button", name="Login").click()
        page.wait_for_selector("#ask", timeout=60_000)
        upload(page, picture(tmp_path))
        assert len(server.core.images.of("anna")) == 1 and not server.core.images.of("local")
        page.close()
