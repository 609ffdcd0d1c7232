"""Text, answer and box metrics as published with Uni-Med."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from unimed.metrics.text import bleu, corpus_meteor_exact, ptb_tokens

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = frozenset({"a", "an", "the"})
_SHORT = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't"
    " it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't she'd've should've"
    " shouldn't somebody'd somebody'll somebody's someone'd someone'll someone's something'd something'll that's"
    " there'd there're there's they'd they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's"
    " what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't"
    " y'all y'all'll you'd you'll you're you've couldn't've hadn't've he'd've it'd've mightn't've shouldn't've"
    " somebody'd've someone'd've something'd've there'd've they'd've who'd've wouldn't've y'all'd've you'd've"
).split()


def _contractions():
    table = {}
    for word in _SHORT:
        table[word.replace("'", "")] = word
        for place in [i for i, letter in enumerate(word) if letter == "'"]:
            if word.count("'") > 1:
                table[word[:place] + word[place + 1 :]] = word
    return table


_CONTRACTIONS = _contractions()


def normalize(text: str) -> str:
    """The published normal form of an answer, a variant of the VQA challenge's.

    Quirks kept: a mark is deleted when it touches a space anywhere (or digits with a comma occur anywhere), else it
    becomes a space; a colon stays; at most 32 full stops go, and only where no digit follows; "none" becomes 0.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    result = text
    grouped = re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        touches = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches or grouped else " ")
    result = re.sub(r"\.(?!\d)", "", result, count=32)
    words = [_NUMBERS.get(word, word) for word in result.lower().split()]
    words = [_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(words).replace(",", "")


def token_f1(predicted: str, truth: str) -> float:
    """Published token F1: every predicted copy of a shared word counts as found, so repetition is never punished."""
    mine, other = Counter(normalize(predicted).split()), Counter(normalize(truth).split())
    if not mine or not other:
        return 0.0
    hits = sum(count for word, count in mine.items() if word in other)
    false = sum(count for word, count in mine.items() if word not in other)
    missed = sum(count for word, count in other.items() if word not in mine)
    return 2 * hits / (2 * hits + false + missed) if hits else 0.0


def sentence_bleu(predicted: str, truth: str, order: int) -> float:
    """Published BLEU of one answer: no smoothing, orders without a match at the smallest float (1e-155 or so)."""
    words, ref = normalize(predicted).split(), normalize(truth).split()
    logs = []
    for n in range(1, order + 1):
        mine, other = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (words, ref))
        hits = sum((mine & other).values())
        if n == 1 and not hits:
            return 0.0
        logs.append(math.log(hits / max(1, sum(mine.values())) if hits else sys.float_info.min))
    penalty = 1.0 if len(words) > len(ref) else math.exp(1 - len(ref) / len(words))
    return penalty * math.exp(sum(logs) / order)


def answers(rows: Sequence[Mapping]) -> dict:
    """Means over rows with answer_pred and answer_gt: bleu_scores (1..4) and f1_score; NaN without rows."""
    pairs = [(row["answer_pred"], row["answer_gt"]) for row in rows]

    def mean(values):
        return float(np.mean(values)) if values else float("nan")

    return {
        "bleu_scores": {f"bleu{n}": mean([sentence_bleu(p, t, n) for p, t in pairs]) for n in range(1, 5)},
        "f1_score": mean([token_f1(p, t) for p, t in pairs]),
    }


def vqa(rows: Sequence[Mapping]) -> dict:
    """Published VQA report over open, closed and all questions (field answer_type OPEN or CLOSED).

    Quirk kept: a closed answer is right when the truth is a *substring* of the answer ("no" is found in "normal").
    Our own is `text.exact_match`.
    """
    parts = {name: [row for row in rows if row["answer_type"] == name.upper()] for name in ("open", "closed")}
    result = {name: answers(part) for name, part in parts.items()}
    right = [normalize(row["answer_gt"]) in normalize(row["answer_pred"]) for row in parts["closed"]]
    result["closed"]["acc_score"] = float(np.mean(right)) if right else float("nan")
    return result | {"all": answers(rows)}


def identify(rows: Sequence[Mapping]) -> dict:
    """Published region description and classification report: `answers` and equality of the normal forms."""
    right = [normalize(row["answer_pred"]) == normalize(row["answer_gt"]) for row in rows]
    return answers(rows) | {"acc_score": float(np.mean(right)) if right else float("nan")}


def parse_box(answer: str) -> list[int] | None:
    """The four whole numbers of an answer that *starts* with {<a><b><c><d>}, else None."""
    found = re.match(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}", answer.replace("<unk>", "").replace(" ", ""))
    return [int(v) for v in found.groups()] if found else None


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Published IoU of two xyxy boxes: one pixel is added to every side, even between touching or real-valued boxes."""
    x1, y1, x2, y2 = first
    u1, v1, u2, v2 = second
    common = max(0, min(x2, u2) - max(x1, u1) + 1) * max(0, min(y2, v2) - max(y1, v1) + 1)
    sizes = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1)
    return common / (sizes - common)


def referring(rows: Sequence[Mapping], resolution: int = 100) -> dict[str, float]:
    """Published REC report over rows with answer, gt_bbox (x, y, w, h in pixels), width, height.

    Quirks kept: answers that do not start with a box score 0, IoU as in `box_iou`, acc counts IoU > 0.5 (not >=).
    """
    scores = []
    for row in rows:
        box, (x, y, w, h) = parse_box(row["answer"]), row["gt_bbox"]
        if box is None:
            scores.append(0.0)
            continue
        scaled = [v / resolution * side for v, side in zip(box, (row["width"], row["height"]) * 2, strict=True)]
        scores.append(box_iou(scaled, (x, y, x + w, y + h)))
    return {"miou": float(np.mean(scores)), "acc": float(np.mean(np.array(scores) > 0.5))}


def captions(rows: Sequence[Mapping]) -> dict:
    """Published caption report; rows with an empty reference or prediction are dropped first, which flatters.

    BLEU is corpus BLEU on raw text, the rest is on normal forms. METEOR here is the exact stage only.
    """
    pairs = [(row["answer_pred"], row["answer_gt"]) for row in rows if row["answer_pred"] and row["answer_gt"]]
    predicted, truth = [p for p, _ in pairs], [t for _, t in pairs]
    plain = [(normalize(p), normalize(t)) for p, t in pairs]
    rouges = [_rouge(p, t) for p, t in plain if p and t]
    return {
        "bleu_scores": {
            f"bleu{n}": v for n, v in enumerate(bleu(predicted, truth, tokenize=ptb_tokens, compat="reference"), 1)
        },
        "meteor_scores": corpus_meteor_exact([p for p, _ in plain], [t for _, t in plain], tokenize=ptb_tokens),
        "rouge_scores": {
            f"rouge_{name}": float(np.mean([row[name] for row in rouges])) if rouges else float("nan")
            for name in ("1", "2", "l")
        },
        "f1_score": float(np.mean([token_f1(p, t) for p, t in pairs])) if pairs else float("nan"),
    }


def _rouge(predicted: str, truth: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L F as the `rouge` package has them: over sets of n-grams, each counted once.

    A full stop ends a sentence and is left out, that of "2.5" too; ROUGE-L unites the words of the longest common
    subsequences of every pair of sentences.
    """
    sentences = [[" ".join(part.split()) for part in text.split(".") if part] for text in (predicted, truth)]
    words, ref = ([word for part in parts for word in part.split(" ")] for parts in sentences)
    scores = {}
    for name, n in (("1", 1), ("2", 2)):
        mine, other = ({tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (words, ref))
        scores[name] = _f(len(mine & other), len(mine), len(other))
    shared: set[str] = set()
    for mine in sentences[0]:
        for other in sentences[1]:
            shared |= _common_words(other.split(" "), mine.split(" "))
    scores["l"] = _f(len(shared), len(set(words)), len(set(ref)))
    return scores


def _common_words(first: Sequence[str], second: Sequence[str]) -> set[str]:
    """The words of the longest common subsequence the package finds: of equals, the one that ends first in `second`."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, word in enumerate(first, 1):
        for j, other in enumerate(second, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if word == other else max(table[i - 1][j], table[i][j - 1])
    i, j, found = len(first), len(second), set()
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.add(first[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def _f(hits: int, predicted: int, true: int) -> float:
    precision, recall = hits / predicted if predicted else 0.0, hits / true if true else 0.0
    return 2 * precision * recall / (precision + recall + 1e-8)
