"""Text metrics in plain Python: BLEU, ROUGE-L, CIDEr-D, METEOR (exact stage), token F1, exact match, phrase F1.

Corpus functions take one hypothesis and one list of references per sample. Texts go through `tokens` by default
(`captions` through `ptb_tokens`, as the COCO caption tools cut them); `tokenize=str.split` scores the raw strings, as
some published tables do. With the same tokens BLEU, ROUGE-L and CIDEr-D give the numbers of the COCO caption tools.

An empty text is a text: it matches an empty one wholly and any other not at all, and is counted either way.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from unimed.metrics.boxes import as_boxes, iou_matrix
from unimed.metrics.matching import assign
from unimed.metrics.registered import metric
from unimed.metrics.words import exact_match, normal_form, one_line, ptb_tokens, tokens

__all__ = [
    "bleu", "captions", "cider_d", "corpus_meteor_exact", "exact_match", "meteor_exact", "normal_form", "open_answers",
    "phrase_counts", "phrase_f1", "ptb_tokens", "rouge_l", "sentence_bleu", "token_f1", "tokens",
]  # fmt: skip
Tokenize = Callable[[str], list[str]]

# The commonest English words: METEOR lets them weigh a third of the others (0.25 against 0.75). Where its own list
# differs in a word, a score moves in the second digit.
_FUNCTION_WORDS = frozenset(
    "a about after all also an and any are as at be been but by can could did do for from had has have he her him his"
    " how i if in into is it its like may more most new no not now of on one or other our out over said she should"
    " so some such than that the their them then there these they this time to two up was we were what when which who"
    " will with would you your . , ; : ? ! ( ) ' - -- \"".split()
)


def _ngrams(words: Sequence[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _prepare(hypotheses: Sequence[str], references: Sequence, tokenize: Tokenize):
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses cannot be compared with {len(references)} references")
    lists = [[entry] if isinstance(entry, str) else list(entry) for entry in references]
    for index, entry in enumerate(lists):
        if not entry:
            raise ValueError(f"references[{index}] is empty: every sample needs at least one reference text")
    return [tokenize(text) for text in hypotheses], [[tokenize(text) for text in entry] for entry in lists]


def bleu(
    hypotheses: Sequence[str],
    references: Sequence,
    *,
    order: int = 4,
    tokenize: Tokenize = tokens,
    compat: str | None = None,
) -> list[float]:
    """Corpus BLEU-1..`order` (Papineni 2002): clipped counts summed over the corpus, closest reference length.

    Args:
        compat: None leaves out an order of which neither side holds a single n-gram, so that equal short texts score 1.
            "reference" gives it a precision of 1e-6, as the COCO tools do.

    Returns:
        `order` values in [0, 1]; all NaN without samples.
    """
    hypotheses, references = _prepare(hypotheses, references, tokenize)
    if not hypotheses:
        return [float("nan")] * order
    parts = [_bleu_counts(h, r, order) for h, r in zip(hypotheses, references, strict=True)]
    return _bleu_value([np.sum([part[i] for part in parts], axis=0) for i in range(5)], compat)


def sentence_bleu(
    hypothesis: str, references, *, order: int = 4, tokenize: Tokenize = tokens, compat: str | None = None
) -> list[float]:
    """BLEU-1..`order` of one sample, the n-gram orders without a match at about 1e-9 instead of 0; see `bleu`."""
    (words,), (refs,) = _prepare([hypothesis], [references], tokenize)
    return _bleu_value(_bleu_counts(words, refs, order), compat)


def _bleu_counts(words, refs, order):
    """Matches, n-grams of the hypothesis, its length, length of the closest reference, n-grams of that reference."""
    correct = np.zeros(order)
    for n in range(1, order + 1):
        allowed: Counter = Counter()
        for ref in refs:
            allowed |= _ngrams(ref, n)
        correct[n - 1] = sum((_ngrams(words, n) & allowed).values())
    closest = min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]
    guessed, there = (np.array([max(0, size - n) for n in range(order)], dtype=float) for size in (len(words), closest))
    return correct, guessed, len(words), closest, there


def _bleu_value(counts: Sequence, compat: str | None) -> list[float]:
    correct, guessed, length, ref_length, there = counts
    # The small constants keep empty texts from dividing by zero; they are those of the COCO tools.
    precision = (np.asarray(correct) + 1e-15) / (np.asarray(guessed) + 1e-9)
    orders = np.arange(1, len(precision) + 1)
    if compat != "reference":
        used = (np.asarray(guessed) > 0) | (np.asarray(there) > 0)
        whole = ~used | (np.asarray(correct) == np.asarray(guessed)) & (np.asarray(guessed) > 0)
        precision, orders = np.where(whole, 1.0, precision), np.maximum(np.cumsum(used), 1)
        if length == ref_length:
            return [float(v) for v in np.cumprod(precision) ** (1 / orders)]
    values = np.cumprod(precision) ** (1 / orders)
    ratio = (length + 1e-15) / (ref_length + 1e-9)
    return [min(1.0, float(v)) for v in values * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)]


def _lcs(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(hypotheses: Sequence[str], references: Sequence, *, tokenize: Tokenize = tokens) -> list[float]:
    """ROUGE-L F per sample (Lin 2004) with beta 1.2, best precision and best recall over the references."""
    hypotheses, references = _prepare(hypotheses, references, tokenize)
    values = []
    for words, refs in zip(hypotheses, references, strict=True):
        if not words and any(not ref for ref in refs):
            values.append(1.0)
            continue
        common = [_lcs(words, ref) for ref in refs]
        precision = max((c / len(words) for c in common), default=0.0) if words else 0.0
        recall = max((c / len(ref) if ref else 0.0) for c, ref in zip(common, refs, strict=True))
        denominator = recall + 1.44 * precision
        values.append((1 + 1.44) * precision * recall / denominator if precision and recall else 0.0)
    return values


def cider_d(hypotheses: Sequence[str], references: Sequence, *, tokenize: Tokenize = tokens) -> list[float]:
    """CIDEr-D per sample (Vedantam 2015), n = 1..4, sigma 6, scaled to 0..10.

    The word weights come from the references given here: the value depends on the corpus and is comparable only on
    the same test set.
    """
    hypotheses, references = _prepare(hypotheses, references, tokenize)
    frequency: Counter = Counter()
    for refs in references:
        frequency.update({gram for ref in refs for n in range(1, 5) for gram in _ngrams(ref, n)})
    log_total = math.log(max(1, len(references)))

    def vector(words, n):
        return {g: c * (log_total - math.log(max(1, frequency[g]))) for g, c in _ngrams(words, n).items()}

    values = []
    for words, refs in zip(hypotheses, references, strict=True):
        scores = []
        for ref in refs:
            penalty = math.exp(-((max(0, len(words) - 1) - max(0, len(ref) - 1)) ** 2) / (2 * 6.0**2))
            for n in range(1, 5):
                mine, other = vector(words, n), vector(ref, n)
                dot = sum(min(weight, other.get(g, 0.0)) * other.get(g, 0.0) for g, weight in mine.items())
                norm = math.hypot(*mine.values()) * math.hypot(*other.values())
                scores.append(penalty * (dot / norm if norm else dot))
        values.append(10.0 * sum(scores) / len(scores))
    return values


def meteor_exact(hypotheses: Sequence[str], references: Sequence, *, tokenize: Tokenize | None = None) -> list[float]:
    """METEOR 1.5 per sample (Denkowski 2014) with its exact stage only: no stems, synonyms or paraphrases.

    It needs no Java and no word nets, and lies at or below the full METEOR; never mix the two in one table.
    Punctuation counts as function words unless `tokenize` drops it.
    """
    hypotheses, references = _prepare(hypotheses, references, tokenize or _words_and_marks)
    return [
        max(_meteor_value(_meteor_counts(h, ref)) for ref in refs)
        for h, refs in zip(hypotheses, references, strict=True)
    ]


def corpus_meteor_exact(hypotheses: Sequence[str], references: Sequence, *, tokenize: Tokenize | None = None) -> float:
    """METEOR of a corpus, exact stage only: counts of all samples are added up first, as the COCO tools report it."""
    hypotheses, references = _prepare(hypotheses, references, tokenize or _words_and_marks)
    if not hypotheses:
        return float("nan")
    counts = [
        max((_meteor_counts(h, ref) for ref in refs), key=_meteor_value)
        for h, refs in zip(hypotheses, references, strict=True)
    ]
    return _meteor_value(tuple(sum(column) for column in zip(*counts, strict=True)))


def _words_and_marks(text):
    return re.findall(r"\w+(?:[-'/]\w+)*|[^\w\s]", one_line(text).lower())


def _meteor_counts(words, ref):
    """Weight of matches, of the hypothesis, of the reference; matched words, chunks."""

    def weight(part):
        return sum(0.25 if word in _FUNCTION_WORDS else 0.75 for word in part)

    matched, chunks = _align(words, ref)
    hits = weight([words[i] for i in matched])
    # A sentence that is found whole, in one piece, is not punished for being one chunk.
    chunks = 0 if chunks == 1 and len(matched) == len(words) == len(ref) else chunks
    return hits, weight(words), weight(ref), len(matched), chunks


def _meteor_value(counts):
    hits, predicted, true, matched, chunks = counts
    if not matched:
        return float(not predicted and not true)
    precision, recall = hits / predicted, hits / true
    f_mean = precision * recall / (0.85 * precision + 0.15 * recall)
    return f_mean * (1 - 0.6 * (chunks / matched) ** 0.2)


def _align(words, ref, width: int = 40):
    """Matched hypothesis positions and chunk count of a good one-to-one alignment: most words, then fewest chunks."""
    places: dict[str, list[int]] = {}
    for j, word in enumerate(ref):
        places.setdefault(word, []).append(j)
    # A state: (negative matches, chunks, last reference place or -2 after a gap, used places, hypothesis places).
    states: list[tuple[int, int, int, frozenset[int], tuple[int, ...]]] = [(0, 0, -2, frozenset(), ())]
    for i, word in enumerate(words):
        following = []
        for matches, chunks, last, used, taken in states:
            following.append((matches, chunks, -2, used, taken))
            for j in places.get(word, ()):
                if j not in used:
                    following.append((matches - 1, chunks + (j != last + 1), j, used | {j}, (*taken, i)))
        states = sorted(following, key=lambda state: state[:3])[:width]
    best = min(states, key=lambda state: state[:2])
    return best[4], best[1]


@metric("token_f1", "text")
def token_f1(hypothesis: str, reference: str, *, tokenize: Tokenize = tokens) -> float:
    """F1 of the two bags of words, surplus copies counted (SQuAD); both empty: 1, one empty: 0."""
    mine, other = Counter(tokenize(hypothesis)), Counter(tokenize(reference))
    if not mine or not other:
        return float(mine == other)
    return 2 * sum((mine & other).values()) / (sum(mine.values()) + sum(other.values()))


def open_answers(predicted: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Visual question answering with one reference each: mean exact match, token F1 and BLEU-1 over samples."""
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} answers cannot be compared with {len(truth)} references")
    if not truth:
        return {"exact_match": float("nan"), "token_f1": float("nan"), "bleu_1_mean_over_samples": float("nan")}
    pairs = list(zip(predicted, truth, strict=True))
    return {
        "exact_match": float(np.mean([exact_match(p, t) for p, t in pairs])),
        "token_f1": float(np.mean([token_f1(p, t) for p, t in pairs])),
        "bleu_1_mean_over_samples": float(np.mean([sentence_bleu(p, t, order=1)[0] for p, t in pairs])),
    }


def captions(
    hypotheses: Sequence[str], references: Sequence, *, tokenize: Tokenize = ptb_tokens, compat: str | None = None
) -> dict[str, float]:
    """BLEU-1..4 and METEOR's exact stage (both of the corpus), ROUGE-L and CIDEr-D (means over samples) of reports."""

    def mean(values):
        return float(np.mean(values)) if values else float("nan")

    result = {f"bleu_{n}": v for n, v in enumerate(bleu(hypotheses, references, tokenize=tokenize, compat=compat), 1)}
    return result | {
        "rouge_l": mean(rouge_l(hypotheses, references, tokenize=tokenize)),
        "cider_d": mean(cider_d(hypotheses, references, tokenize=tokenize)),
        "meteor_exact": corpus_meteor_exact(hypotheses, references, tokenize=tokenize),
    }


def phrase_counts(
    predicted: Sequence[str],
    truth: Sequence[str],
    predicted_boxes=None,
    true_boxes=None,
    *,
    iou: float = 0.5,
    token_f1_at_least: float | None = None,
) -> dict[str, int]:
    """How many phrases of one report were found, each matched once.

    Phrases match when they are the same in `normal_form`, or share enough words where `token_f1_at_least` is given.
    With boxes (one xyxy box per phrase, [N, 4] and [M, 4]) a match also needs IoU >= `iou`: the IoU-gated phrase F1.

    Returns:
        tp, predicted and true counts; add them up over reports and call `phrase_f1`.
    """
    likeness = np.zeros((len(predicted), len(truth)))
    for i, phrase in enumerate(predicted):
        for j, other in enumerate(truth):
            fraction = token_f1(phrase, other) if token_f1_at_least is not None else float(exact_match(phrase, other))
            likeness[i, j] = fraction if fraction >= (1.0 if token_f1_at_least is None else token_f1_at_least) else 0.0
    if predicted_boxes is not None or true_boxes is not None:
        first, second = _boxes(predicted_boxes, "predicted_boxes"), _boxes(true_boxes, "true_boxes")
        if len(first) != len(predicted) or len(second) != len(truth):
            raise ValueError(
                f"one box per phrase: {len(predicted)} phrases with {len(first)} boxes, {len(truth)} with {len(second)}"
            )
        likeness *= iou_matrix(first, second) >= iou
    return {
        "tp": len(assign(likeness)),
        "predicted": len(predicted),
        "true": len(truth),
    }


def phrase_f1(counts: Sequence[dict[str, int]]) -> dict[str, float]:
    """Micro precision, recall and F1 over reports from `phrase_counts`; NaN where nothing was said or nothing is."""
    hits, predicted, true = (sum(row[key] for row in counts) for key in ("tp", "predicted", "true"))
    return {
        "phrase_precision_micro": hits / predicted if predicted else float("nan"),
        "phrase_recall_micro": hits / true if true else float("nan"),
        "phrase_f1_micro": 2 * hits / (predicted + true) if predicted + true else float("nan"),
    }


def _boxes(boxes, name):
    return as_boxes([] if boxes is None else boxes, name)


@metric("exact_match", "text")
def exact(hypothesis: str, reference: str) -> float:
    """1.0 where `exact_match` holds."""
    return float(exact_match(hypothesis, reference))


@metric("rouge_l", "text")
def rouge_l_of_pair(hypothesis: str, reference: str) -> float:
    """`rouge_l` of one sample with one reference."""
    return rouge_l([hypothesis], [reference])[0]


@metric("phrase_f1", "phrases", aggregation="micro: counts are summed first", nan="no phrase on either side")
def phrase_f1_of_lists(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """F1 of the phrases of one report, equal ones matched once each."""
    return phrase_f1([phrase_counts(predicted, truth)])["phrase_f1_micro"]


def _register_corpus_metrics() -> None:
    for order in range(1, 5):
        metric(f"bleu_{order}", "corpus", aggregation="corpus: counts are summed first", nan="no samples")(
            lambda hypotheses, references, n=order: bleu(hypotheses, references, order=n, tokenize=ptb_tokens)[-1]
        )
    metric("meteor_exact", "corpus", aggregation="corpus: counts are summed first", nan="no samples")(
        lambda hypotheses, references: corpus_meteor_exact(hypotheses, references, tokenize=ptb_tokens)
    )
    metric("cider_d", "corpus", range=(0.0, 10.0), perfect=None, nan="no samples")(
        lambda hypotheses, references: float(np.mean(cider_d(hypotheses, references, tokenize=ptb_tokens) or np.nan))
    )


_register_corpus_metrics()
