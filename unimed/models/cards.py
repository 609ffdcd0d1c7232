"""Model cards: what a model is, is for and is not for, how it did where it was measured, and under which licenses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unimed.data.licenses import Source, asks_for, hub_license, strictest
from unimed.markup import for_markdown

NOTICE = "**Research use only.** Not a medical device; no output may be used for a diagnosis."
INTENDED = (
    "Research and teaching on biomedical images of the kinds listed under training data: a person asks, looks at the "
    "image and judges the answer.",
)
UNINTENDED = (
    "Diagnosis, triage, treatment or any other decision about a patient.",
    "Images of kinds, sites, devices or people that were not in the training data: nothing was measured there.",
    "Conclusions from an empty mask or a low presence: both may be wrong. Rates are in the tables, where measured.",
)


def model_card(
    name: str,
    *,
    tags: Sequence[str],
    example: str,
    sources: Sequence[Source] = (),
    origin: str = "",
    summary: Mapping[str, str] | None = None,
    tables: str = "",
    results: Sequence = (),
) -> str:
    """Text of a README.md with the front matter that hubs read.

    Args:
        name: of the model. tags: of the hub.
        example: a line of Python about `model`.
        sources: what it is made of; the license of the card is the strictest of theirs.
        origin: one sentence on how it was made.
        summary: {metric: value} of its test, as text. tables: further tables of measured numbers, in Markdown.
        results: `EvalResult`s of huggingface_hub, for the model index.
    """
    from huggingface_hub import ModelCardData

    license_text = strictest(one.license for one in sources)
    known = hub_license(license_text)
    front = ModelCardData(
        library_name="unimed", tags=[*tags, "unimed"], license=known, model_name=name,
        eval_results=list(results) or None,
        **({"license_name": " ".join(license_text.split())[:80]} if known == "other" else {}),
    )  # fmt: skip
    lines = ["---", front.to_yaml().strip(), "---", f"# {name}", "", NOTICE, ""]
    lines += [origin, ""] if origin else []
    lines += [
        "```python", "import unimed", f'model = unimed.load("{name}")  # this folder', example, "```", "",
        "```python", "import unimed.models", "from transformers import pipeline", "",
        f'answer = pipeline("grounded-image-text", model="{name}")', "```",
    ]  # fmt: skip
    lines += ["", "## Intended use", "", *(f"- {text}" for text in INTENDED)]
    lines += ["", "Not for:", "", *(f"- {text}" for text in UNINTENDED)]
    lines += ["", "## Parts and licenses", "", *licenses_table(sources)]
    if summary or tables:
        lines += ["", "## Test"]
    if summary:
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [f"| {for_markdown(key)} | {value} |" for key, value in summary.items()]
    if tables:
        lines += ["", _below(tables, level=3)]
    if not (summary or tables):
        lines += ["", "## Test", "", "Nothing was measured with this folder."]
    return "\n".join(lines) + "\n"


def licenses_table(sources: Sequence[Source]) -> list[str]:
    """Lines of a table of parts, and the one that binds most."""
    if not sources:
        return ["Nobody wrote down what this model is made of: find out the terms of its weights and data before use."]
    cells = ((one.part, one.name, one.license, one.detail) for one in sources)
    rows = [f"| {' | '.join(map(for_markdown, row))} |" for row in cells]
    text = strictest(one.license for one in sources)
    return [
        "| part | from | license | |", "|---|---|---|---|", *rows, "",
        f"**Strictest: {for_markdown(text)}** (asks for {asks_for(text)[1]}). It binds the whole.",
    ]  # fmt: skip


def _below(markdown: str, level: int) -> str:
    """Headings of a page moved below a heading of the card."""
    lines = markdown.strip().split("\n")
    depths = [len(line) - len(line.lstrip("#")) for line in lines if line.startswith("#")]
    shift = level - min(depths, default=level)
    return "\n".join("#" * max(shift, 0) + line if line.startswith("#") else line for line in lines)


def card_of_folder(folder: str | Path) -> str | None:
    """The card that lies in a folder of a model."""
    path = Path(folder) / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else None
