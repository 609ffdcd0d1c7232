"""A page on which labels are tried on an image, by gradio (extra `serve`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

NOTICE = (
    "Probabilities compare the labels given with one another; they are no probabilities of a disease. "
    "**Research use only, not a medical device.**"
)


def parse_lines(text: str) -> list[str]:
    """One label (or template) per line; commas are part of a label."""
    return [line.strip() for line in text.splitlines() if line.strip()]


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
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'unimed[serve]'") from error
    if not models:
        raise ValueError("the page needs at least one model")
    from unimed.io.windows import CT_WINDOWS_HU

    loaded: dict[str, Any] = {}

    def answer(name, image, labels, templates, site):
        try:
            if name not in loaded:
                loaded[name] = models[name]()
            return classify(loaded[name], image, labels, templates, site or "")
        except (ValueError, OSError) as error:
            raise gradio.Error(str(error)) from error

    first = next(iter(models))
    with gradio.Blocks(title="unimed: zero-shot") as page:
        gradio.Markdown(f"## Which label fits the image?\n{NOTICE}")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type="filepath", label="Image (PNG, JPEG; up to 16 bit)", format="png")
                file = gradio.File(type="filepath", label="or a file (DICOM, TIFF)")
                labels = gradio.Textbox(lines=5, label="Labels, one per line")
                templates = gradio.Textbox(lines=2, label="Templates with {}, one per line (optional)")
                site = gradio.Dropdown(["", *sorted(CT_WINDOWS_HU)], value="", label="CT window of deep images")
                model = gradio.Radio(list(models), value=first, label="Model", visible=len(models) > 1)
                button = gradio.Button("Compare", variant="primary")
            shown = gradio.Label(label="Share of the labels", num_top_classes=10)
        button.click(
            lambda name, picture, other, *rest: answer(name, other or picture, *rest),
            [model, image, file, labels, templates, site],
            shown,
            api_name="zero_shot",
        )
        if examples:
            gradio.Examples([[path, text] for path, text in examples.items()], [image, labels])
    return page
