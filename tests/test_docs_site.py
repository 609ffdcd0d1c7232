"""The documentation builds as a site: no dead link, and every verb, key and registered thing has its place."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("material", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_everything_has_its_place(site):
    from unimed.commands import VERBS
    from unimed.engine.config import KEYS

    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f"unimed {verb}" in commands for verb in VERBS) and commands.count("usage:") >= len(VERBS)
    keys = (site / "reference" / "config.html").read_text(encoding="utf-8")
    assert all(f"<code>{key}</code>" in keys for key in KEYS)
    things = (site / "reference" / "registered.html").read_text(encoding="utf-8")
    assert all(name in things for name in ("GroundingTask", "dicom-seg", "boltzformer"))
    assert "Research use only" in (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), page.name


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text and "fonts.googleapis" not in text, page
