"""What a client's parameters ask for."""

from __future__ import annotations

import json
import re

from unimed.chat import as_plain_text
from unimed.markup import plain_text
from unimed.serve.monai_label.answers import numbered
from unimed.serve.problems import Problem

#: The first choice of the form: the CT window that file and modality ask for.
ANY_SITE = "automatic"


def parameters_of(text: str) -> dict:
    """The JSON object of a form field. Raises Problem 400."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise Problem(400, "params is no JSON", param="params") from error
    if not isinstance(found, dict):
        raise Problem(400, "params is no JSON object", param="params")
    return found


def how_of(asked: dict) -> dict:
    """How grey values are to be shown, for `Core.open`."""
    site = asked.get("site")
    return {} if site in (None, "", ANY_SITE) or not isinstance(site, str) else {"site": site}


def targets_of(asked: dict, known: list[str]) -> tuple[list[str], str]:
    """What the parameters ask for, and a remark: targets of `prompt` (one per line or semicolon), else the labels that
    are chosen by number (`label_prompt`), else all known ones.

    Raises:
        Problem: 400, not text, or too many.
    """
    prompt = asked.get("prompt", "")
    if not isinstance(prompt, str):
        raise Problem(400, "prompt is no text", param="params")
    found = [as_plain_text(plain_text(part)).strip() for part in re.split(r"[;\n]", prompt)]
    found = [part for part in found if part]
    if not found and isinstance(chosen := asked.get("label_prompt"), list):
        by_number = {number: name for name, number in numbered(known).items() if name in known}
        found = [by_number[number] for number in chosen if isinstance(number, int) and number in by_number]
    found = list(dict.fromkeys(found or known))
    if len(found) > 64 or sum(map(len, found)) > 20_000:
        raise Problem(400, "at most 64 targets and 20000 characters in a prompt", param="params")
    return found, "" if found else "nothing was asked for: write what to outline into `prompt`"
