"""Answers of grounded models as UniBiomed's demos write and its metric scripts read them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.files import read_json, write_atomic
from unimed.io.rle import decode_mask, encode_compressed
from unimed.tokens import PHRASE_END, PHRASE_START, SEG_TOKEN

#: How an answer is cut: marked phrases (reports, questions), what follows the masks (diseases), or all of it.
FORMS = ("marked", "after", "plain")


class AnswerError(ValueError):
    """A prediction file that cannot be used; the message names it."""


def clean(markup: str) -> str:
    """The words of an answer: no markers, no quotes around it, single spaces."""
    text = markup.replace("<s>", "").replace("\n", "").replace("  ", " ").split("ASSISTANT: ")[-1]
    text = re.sub(r"<.*?>", "", text).replace(SEG_TOKEN, "")
    return " ".join(text.split()).strip(" \"'")


def caption_and_phrases(markup: str, form: str = "marked") -> tuple[str, list[str]]:
    """What an answer says, and the phrases it points at.

    Args:
        markup: an answer with its markers (`Prediction.markup`).
        form: one of `FORMS`.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; known are {', '.join(FORMS)}")
    if form == "after":
        caption = clean(markup.split(f"{SEG_TOKEN}. ")[-1])
        return caption, [caption]
    if form == "plain":
        return clean(markup), []
    marked = re.findall(f"{re.escape(PHRASE_START)}(.*?){re.escape(PHRASE_END)}", markup, flags=re.DOTALL)
    return clean(markup), [clean(phrase) for phrase in marked]


def write_answer(path: Path, image_id: str, markup: str, form: str, masks: Sequence[np.ndarray] | None = None) -> dict:
    """Write `{image_id, caption, phrases, pred_masks}`; returns what was written.

    Args:
        masks: bool HxW each, as COCO run lengths; None leaves `pred_masks` out.
    """
    caption, phrases = caption_and_phrases(markup, form)
    content: dict = {"image_id": image_id, "caption": caption, "phrases": phrases}
    if masks is not None:
        content["pred_masks"] = [encode_compressed(mask) for mask in masks]
    text = json.dumps(content, ensure_ascii=False)
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return content


def read_answer(path: Path) -> dict:
    """The content of a prediction file, `pred_masks` as bool arrays; an empty list where it has none.

    Raises:
        FileNotFoundError: no such file.
        AnswerError: not JSON, no caption, or run lengths that do not fit.
    """
    try:
        content = read_json(path)
        masks = [decode_mask(entry) for entry in content.get("pred_masks") or ()]
        return {**content, "caption": str(content["caption"]), "pred_masks": masks}
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnswerError(f"{path}: no prediction file ({type(error).__name__}: {error}); make it again") from error


def write_mask(path: Path, mask: np.ndarray) -> Path:
    """A mask as 8-bit picture of 0 and 255, PNG whatever the name says: other formats would blur it."""
    from PIL import Image

    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))
