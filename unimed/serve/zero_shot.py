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


def labels_tab(
    gradio, names: list[str], ask: Callable[[str, Callable[[Any], Any]], Any], uploads: Uploads
) -> None:  # fmt: skip
    """The components of the page, within a gradio container.

    Args:
        names: of models. ask: (name, work) -> what `work(model)` returns.
    """
    from unimed.io.windows import CT_WINDOWS_HU

    def answer(name, upload, kept, labels, templates, site):
        kept = uploads.take(upload, kept)
        if kept is None:
            raise gradio.Error("choose an image first", print_exception=False)
        try:
            with uploads.file(kept) as path:
                shown = ask(name, lambda model: classify(model, path, labels, templates, site or ""))
        except (ValueError, OSError, AttributeError) as error:
            message = "this model compares no labels" if isinstance(error, AttributeError) else str(error)
            raise gradio.Error(for_html(message.replace(f"{uploads.folder}/", "")), print_exception=False) from error
        # Labels are what a visitor typed: they are shown as text.
        shown = {plain_line(label): probability for label, probability in shown.items()}
        return shown, None, kept, f"Asked about: {for_markdown(kept[0])}"

    gradio.Markdown(f"## Which label fits the image?\n{NOTICE}")
    kept = gradio.State(None, time_to_live=3600)
    with gradio.Row():
        with gradio.Column():
            file = gradio.File(type="filepath", label="Image (PNG, JPEG, TIFF, DICOM, NIfTI)")
            asked = gradio.Markdown()
            labels = gradio.Textbox(lines=5, label="Labels, one per line")
            templates = gradio.Textbox(lines=2, label="Templates with {}, one per line (optional)")
            site = gradio.Dropdown(["", *sorted(CT_WINDOWS_HU)], value="", label="CT window of deep images")
            model = gradio.Radio(names, value=names[0], label="Model", visible=len(names) > 1)
            button = gradio.Button("Compare", variant="primary")
            gradio.Markdown("Uploads are deleted as soon as they are read.")
        shown = gradio.Label(label="Share of the labels", num_top_classes=10)
    inputs = [model, file, kept, labels, templates, site]
    button.click(answer, inputs, [shown, file, kept, asked], api_name="zero_shot")


def build_page(models: Mapping[str, Callable[[], Any]]):
    """The page alone, without a server around it.

    Args:
        models: name -> function that loads the model; it is called when the name is first used.

    Returns:
        gradio's `Blocks`; `.launch()` serves it.

    Raises:
        ImportError: gradio is not there.
        ValueError: no model.
    """
    if not models:
        raise ValueError("the page needs at least one model")
    gradio, uploads = gradio_for(Uploads())
    loaded: dict[str, Any] = {}

    def ask(name, work):
        if name not in loaded:
            loaded[name] = models[name]()
        return work(loaded[name])

    # What a visitor uploads and never asks about is deleted within minutes.
    with gradio.Blocks(title="unimed: zero-shot", delete_cache=(60, 300)) as page:
        labels_tab(gradio, list(models), ask, uploads)
    return page


def gradio_for(uploads: Uploads):
    """(gradio, uploads), with gradio's files in the folder of the uploads and nothing told to anybody.

    Raises:
        ImportError: gradio is not there.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)  # before gradio looks for it
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'unimed[serve]'") from error
    return gradio, uploads
