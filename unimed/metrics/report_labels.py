"""Findings that a report of a chest radiograph states, by rules: 14 observations, present, absent or uncertain.

The observations are those of CheXpert (arXiv 1901.07031). The labels come from words and cues of negation and doubt in
a sentence, as those of the CheXpert labeler do; they are no output of CheXbert, and their F1 must not be compared with
numbers of it. They need no weights, and the same text always gets the same labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

#: Observation -> what names it. The five that papers report apart come first.
OBSERVATIONS = {
    "atelectasis": r"atelecta\w+|volume loss|collapse of (?:the )?\w+ lobe",
    "cardiomegaly": r"cardiomegaly|cardiac enlargement|enlarged (?:heart|cardiac)\w*"
    r"|(?:heart|cardiac(?: silhouette)?) (?:size )?(?:is|appears) (?:\w+ )?enlarged",
    "consolidation": r"consolidat\w+",
    "edema": r"edema|vascular congestion|cephalization",
    "pleural effusion": r"(?:pleural )?effusions?|blunting of the \w+ costophrenic",
    "enlarged cardiomediastinum": r"(?:widen\w+|enlarge\w+) (?:of the )?mediastin\w+"
    r"|mediastin\w+ (?:is )?(?:widen|enlarge)\w*",
    "fracture": r"fractur\w+",
    "lung lesion": r"nodul\w+|mass(?:es)?|lung lesions?",
    "lung opacity": r"opaci\w+|infiltrat\w+",
    "pleural other": r"pleural (?:thickening|plaques?|scar\w*)|fibrothorax",
    "pneumonia": r"pneumonia|infectious process|infection",
    "pneumothorax": r"pneumothora\w+",
    "support devices": r"(?:endotracheal|nasogastric|chest|enteric|feeding|tracheostomy) tube|picc|catheter|pacemaker"
    r"|pacer|central (?:venous )?line|icd leads?|port-a-cath|sternal wires|swan-ganz",
}
NO_FINDING = "no finding"
FIVE = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion")
PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
_NEGATED = re.compile(
    r"\b(?:no|without|free of|absence of|negative for|denies|resol(?:ved|ution of)|ruled out|clear of"
    r"|not?(?: \w+){0,2} (?:seen|identified|visualized|demonstrated))\b"
)
_NEGATED_AFTER = re.compile(
    r"^\W*(?:\w+\W+){0,3}?(?:(?:is|are|was|were) (?:not|absent)|has resolved|have resolved|ruled out)\b"
)
_DOUBTED = re.compile(
    r"\b(?:may|might|could|possib\w+|probab\w+|suspect\w+|suspicious|question\w*|cannot (?:be )?exclude\w*|versus|vs"
    r"|likely|suggest\w*|concern\w*|differential)\b"
)
_DOUBTED_AFTER = re.compile(
    r"^\W*(?:\w+\W+){0,2}?(?:can ?not be excluded|not excluded|(?:is|are) (?:possible|suspected|questionable)"
    r"|versus|vs)\b"
)
#: What ends the reach of a negation within a sentence.
_TURNS = re.compile(r"\b(?:but|however|although|though|except|which)\b|;")
_FOUND = {name: re.compile(rf"\b(?:{words})\b") for name, words in OBSERVATIONS.items()}


def report_labels(text: str) -> dict[str, str]:
    """Observation -> "present", "uncertain", "absent", or "" where it is not mentioned.

    Mentions of one observation in several sentences: present counts before uncertain, and that before absent. "no
    finding" is present where nothing but support devices is present or uncertain.
    """
    found = dict.fromkeys(OBSERVATIONS, "")
    order = {"": 0, ABSENT: 1, UNCERTAIN: 2, PRESENT: 3}
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", " ".join(text.lower().split(" "))):
        for part in _TURNS.split(sentence):
            for name, pattern in _FOUND.items():
                for match in pattern.finditer(part):
                    label = _stated(part[: match.start()], part[match.end() :])
                    found[name] = max(found[name], label, key=order.__getitem__)
    sick = any(label in (PRESENT, UNCERTAIN) for name, label in found.items() if name != "support devices")
    return found | {NO_FINDING: "" if sick or not text.strip() else PRESENT}


def _stated(before: str, after: str) -> str:
    if _NEGATED.search(before) or _NEGATED_AFTER.search(after):
        return ABSENT
    return UNCERTAIN if _DOUBTED.search(before) or _DOUBTED_AFTER.search(after) else PRESENT


def label_scores(predicted: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """F1 of the stated observations of reports, macro and micro, over 14 and over the `FIVE`.

    Present and uncertain count as positive. An observation that is in neither has an F1 of NaN and is left out of the
    macro mean.

    Args:
        predicted, truth: reports, one for one.

    Raises:
        ValueError: another number of predictions.
    """
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} reports cannot be compared with {len(truth)}")
    names = (*OBSERVATIONS, NO_FINDING)
    predicted, true = (
        np.array(
            [[report_labels(text)[name] in (PRESENT, UNCERTAIN) for name in names] for text in texts], dtype=bool
        ).reshape(len(texts), len(names))
        for texts in (predicted, truth)
    )
    scores = {}
    for title, chosen in (("14", range(len(names))), ("5", [names.index(name) for name in FIVE])):
        one, other = predicted[:, list(chosen)], true[:, list(chosen)]
        hits, total = (one & other).sum(0), one.sum(0) + other.sum(0)
        each = np.divide(2 * hits, total, out=np.full(len(total), np.nan), where=total > 0)
        scores[f"rule_label_f1_macro_{title}"] = float(np.nanmean(each)) if total.any() else float("nan")
        scores[f"rule_label_f1_micro_{title}"] = float(2 * hits.sum() / total.sum()) if total.any() else float("nan")
    return scores
