"""A page on which labels are tried on an image, by gradio (extra `serve`)."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unimed.markup import for_html, for_markdown, plain_line
from unimed.names import safe_name

NOTICE = (
    "Probabilities compare the labels given with one another; they are no probabilities of a disease. "
    "**Research use only, not a medical device.**"
)


def parse_lines(text: str) -> list[str]:
    """One label (or template) per line; commas are part of a label."""
    return [line.strip() for line in text.split("\n") if line.strip()]


class Uploads:
    """The folder that a page's uploads go to; only its owner reads it, and it is gone when the process ends.

    An image stays on disk for as long as it is read; what a visitor may ask about again is kept in memory.
    """

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="unimed-page-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)

    def take(self, path: str | None, kept: tuple[str, bytes] | None) -> tuple[str, bytes] | None:
        """(name, content) of a new upload, which is deleted, else what was `kept`."""
        if not path:
            return kept
        path = Path(path)
        try:
            return path.name, path.read_bytes()
        finally:
            self.delete(path)

    def delete(self, path: Path) -> None:
        """Delete an upload, and its folder where it stood alone in one; files elsewhere are nobody's to delete."""
        path = path.resolve()
        if self.folder.resolve() in path.parents:
            path.unlink(missing_ok=True)
            if path.parent != self.folder.resolve():
                with contextlib.suppress(OSError):
                    path.parent.rmdir()

    @contextlib.contextmanager
    def file(self, kept: tuple[str, bytes]):
        """The path of an image while it is read."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder) / safe_name(kept[0])
            path.write_bytes(kept[1])
            yield str(path)


def classify(model: Any, image: str | None, labels: str, templates: str = "", site: str = "") -> dict[str, float]:
    """Label -> probability of an image file, as the page shows it.

    Raises:
        ValueError: no image, fewer labels than two, a template without `{}`, or an image that cannot be read.
    """
    if not image:
        raise ValueError("choose an image first")
    names = parse_lines(labels)
    if not names:
        raise ValueError("write one label per line, at least two")
    result = model.zero_shot(image, names, parse_lines(templates) or None, site=site)
    return dict(zip(result.labels, result.probabilities, strict=True))


def build_page(models: Mapping[str, Callable[[], Any]], examples: Mapping[str, str] | None = None):
    """The page.

    Args:
        models: name -> function that loads the model; it is called when the name is first used.
        examples: image file -> its labels, one per line.

    Returns:
        gradio's `Blocks`; `.launch()` serves it.

    Raises:
        ImportError: gradio is not there.
        ValueError: no model.
    """
    if not models:
        raise ValueError("the page needs at least one model")
    uploads = Uploads()
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)  # before gradio looks for it
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'unimed[serve]'") from error
    from unimed.io.windows import CT_WINDOWS_HU

    loaded: dict[str, Any] = {}

    def answer(name, upload, kept, labels, templates, site):
        kept = uploads.take(upload, kept)
        if kept is None:
            raise gradio.Error("choose an image first")
        try:
            if name not in loaded:
                loaded[name] = models[name]()
            with uploads.file(kept) as path:
                shown = classify(loaded[name], path, labels, templates, site or "")
        except (ValueError, OSError) as error:
            raise gradio.Error(for_html(str(error).replace(f"{uploads.folder}/", ""))) from error
        # Labels are what a visitor typed: they are shown as text.
        shown = {plain_line(label): probability for label, probability in shown.items()}
        return shown, None, kept, f"Asked about: {for_markdown(kept[0])}"

    first = next(iter(models))
    # What a visitor uploads and never asks about is deleted within minutes.
    with gradio.Blocks(title="unimed: zero-shot", delete_cache=(60, 300)) as page:
        gradio.Markdown(f"## Which label fits the image?\n{NOTICE}")
        kept = gradio.State(None, time_to_live=3600)
        with gradio.Row():
            with gradio.Column():
                file = gradio.File(type="filepath", label="Image (PNG, JPEG, TIFF, DICOM, NIfTI)")
                asked = gradio.Markdown()
                labels = gradio.Textbox(lines=5, label="Labels, one per line")
                templates = gradio.Textbox(lines=2, label="Templates with {}, one per line (optional)")
                site = gradio.Dropdown(["", *sorted(CT_WINDOWS_HU)], value="", label="CT window of deep images")
                model = gradio.Radio(list(models), value=first, label="Model", visible=len(models) > 1)
                button = gradio.Button("Compare", variant="primary")
                gradio.Markdown("Uploads are deleted as soon as they are read.")
            shown = gradio.Label(label="Share of the labels", num_top_classes=10)
        inputs = [model, file, kept, labels, templates, site]
        button.click(answer, inputs, [shown, file, kept, asked], api_name="zero_shot")
        if examples:
            gradio.Examples([[path, text] for path, text in examples.items()], [file, labels])
    return page
