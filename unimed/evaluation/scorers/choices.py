"""Questions with choices: which choice an answer in words means, and whether it is the right one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from unimed.evaluation.rows import answer_row
from unimed.io.result import Prediction
from unimed.metrics.text import normal_form
from unimed.structures import Sample

#: "B", "(B)", "B.", "B: liver", "Answer: B", "The answer is (B).", "option B", "**B**"
_LETTER = re.compile(
    # Behind a word that announces it, or alone at the start of a line: "A lung is seen" announces nothing.
    r"(?:\b(?i:answer(?:\s+is)?|option|choice)\b[\s:*(\[\"']*([A-J])(?=$|[\s.,:;)\]*\"'])"
    r"|^[\s*(\[\"']*([A-J])(?=\s*$|[.,:;)\]*\"']))",
    re.MULTILINE,
)


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """The number of the choice that an answer names; None where it names none, or several.

    The whole answer may be a choice; a letter counts at the start of a line or behind "answer", "option" and "choice"
    (the last such letter, since reasoning comes first); at last, the one choice whose words stand in the answer, longer
    choices before those they hold.
    """
    predicted, names = normal_form(text), [normal_form(choice) for choice in choices]
    if predicted and names.count(predicted) == 1:
        return names.index(predicted)
    letters = [ord(one or other) - ord("A") for one, other in _LETTER.findall(text.strip())]
    if letters and letters[-1] < len(choices):
        return letters[-1]
    words = f" {predicted} "
    found = [number for number, name in enumerate(names) if name and f" {name} " in words]
    found = [n for n in found if not any(n != m and names[n] != names[m] and f" {names[n]} " in f" {names[m]} "
                                         for m in found)]  # fmt: skip
    return found[0] if len(found) == 1 else None


def score_choices(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict:
    """Rows of kind "answer"; where a sample has choices, the values compare the choice that was named.

    An answer that names no choice is wrong and counted in `unreadable`; `chance` is what drawing a choice would score.
    Questions without choices are compared by their words.

    Returns:
        {"summary": {"accuracy", "unreadable", "chance"}, "cases": rows}.
    """
    rows, unreadable, chance = [], 0, []
    for sample, prediction in zip(samples, predictions, strict=True):
        choices = list(sample.labels.get("choices") or ())
        meant = prediction
        if choices:
            place = chosen(prediction.text, choices)
            unreadable += place is None
            chance.append(1 / len(choices))
            meant = Prediction("" if place is None else choices[place])
        rows.append(answer_row(sample, meant) | {"predicted": prediction.text, "readable": bool(meant.text)})
    right = [row["correct"] for row in rows]
    summary = {"accuracy": sum(right) / max(len(right), 1), "unreadable": unreadable / max(len(right), 1)}
    if chance:
        summary["chance"] = sum(chance) / len(chance)
    return {"summary": summary, "cases": rows}
