"""A headless Chromium for the tests of pages."""

import contextlib
import os
import shutil

import pytest


@contextlib.contextmanager
def chromium():
    """A browser of playwright over the Chromium of the machine; the test is skipped where one of them is not there."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("UNIMED_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    # WebGL by software: viewers draw with it.
    webgl = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", *webgl])
        yield one
        one.close()


def shot(page, name):
    """A picture of the page into the folder `UNIMED_TEST_SHOTS`, for people to look at."""
    if folder := os.environ.get("UNIMED_TEST_SHOTS"):
        page.wait_for_timeout(1000)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
