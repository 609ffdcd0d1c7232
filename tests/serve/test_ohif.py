"""The built OHIF of the monailabel wheel, unchanged, over our doors: free text, and a mask in the viewer."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest
from clinical import ct_series
from small_models import tiny_model
from small_volumes import SERIES, STUDY

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from serve.browser import chromium, shot  # noqa: E402
from serve.monai_client import wheel_folder  # noqa: E402
from serve.serving import application, served, speaking  # noqa: E402

from unimed.serve.doors import clinic_doors  # noqa: E402


def test_free_text_draws_a_mask_in_an_unchanged_viewer(tmp_path):
    folder = wheel_folder("endpoints/static/ohif/index.html")
    if folder is None:
        pytest.skip("pip install --no-deps monailabel, or UNIMED_TEST_MONAILABEL=folder of the unpacked wheel")
    root = tmp_path / "root"
    ct_series(root / "ct", (64, 48, 10))
    model = speaking(tiny_model(), "the <p> nuclei </p> [SEG].")
    doors = clinic_doors(["nuclei"], folder.parent)
    app = application(tmp_path, model, doors=doors, tokens=False, root=root, max_new_tokens=40)
    with served(app) as server, chromium() as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.goto(f"{server.url}/ohif/monai-label?StudyInstanceUIDs={STUDY}", wait_until="domcontentloaded")
        page.get_by_text("Confirm and Hide").click(timeout=60_000)
        page.get_by_text("(6/10)").wait_for(timeout=60_000)  # the middle slice of the stack is drawn
        address = page.locator("input[type=text]").last
        address.fill(f"{server.url}/")
        address.locator("xpath=following::button[1]").click()
        page.get_by_text("Options / Configurations").click(timeout=30_000)
        page.locator("tr", has_text="prompt").locator("input").last.fill("the nuclei")
        page.get_by_text("Confirm", exact=True).last.click()
        view = {"x": 300, "y": 350, "width": 280, "height": 250}
        before = page.screenshot(clip=view)
        with page.expect_response(lambda response: "/infer/" in response.url, timeout=60_000) as caught:
            page.get_by_text("Run", exact=True).first.click()
        answer = caught.value
        query = parse_qs(urlsplit(answer.url).query)
        assert answer.status == 200 and query["image"] == [SERIES] and query["output"] == ["image"]
        sent = answer.request.post_data_buffer
        params = json.loads(sent[sent.index(b"{") : sent.rindex(b"}") + 1])
        assert params["prompt"] == "the nuclei"
        page.wait_for_timeout(3000)
        assert page.screenshot(clip=view) != before
        shot(page, "ohif")
