"""Caption metrics by the COCO caption tools, which need Java; without it the plain-Python ones, and that is said."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from unimed.metrics import text

NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


def missing() -> str:
    """Why the COCO caption tools cannot run here; empty where they can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed (pip install 'unimed[eval]')"
    if shutil.which("java") is None:
        return "no java on the PATH (any Java 8 or newer)"
    return ""


def spice_missing() -> str:
    """Why SPICE cannot run here; empty where it can. Its language models are fetched apart from the package."""
    if why := missing():
        return why
    places = importlib.util.find_spec("pycocoevalcap").submodule_search_locations
    if any(any(Path(place, "spice", "lib").glob("stanford-corenlp-*.jar")) for place in places):
        return ""
    return "SPICE needs Stanford CoreNLP 3.6.0 in pycocoevalcap/spice/lib (its own get_stanford_models fetches it)"


def caption_scores(
    hypotheses: Sequence[str], references: Sequence, spice: bool = False, java: bool | None = None
) -> tuple[dict[str, float], list[str]]:
    """BLEU-1..4, METEOR, ROUGE-L and CIDEr of a corpus under the names of the COCO tools, and remarks.

    Args:
        references: one text, or a list of texts, per hypothesis.
        spice: also SPICE, where it can be had.
        java: True insists on the COCO tools, False never starts them; None takes them where they are.

    Returns:
        scores (METEOR is left out where Java is missing: its exact stage alone would be another number), and what was
        missing, in words.

    Raises:
        RuntimeError: `java` is True and the tools are missing.
        ValueError: no texts, or counts differ.
    """
    if not len(hypotheses) or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses and {len(references)} references; they are pairs, at least one")
    why = missing() if java is not False else "the COCO caption tools were not to be started here"
    if java and why:
        raise RuntimeError(f"the COCO caption tools cannot run: {why}")
    lists = [[entry] if isinstance(entry, str) else list(entry) for entry in references]
    if why:
        plain = text.captions(hypotheses, lists)
        scores = {f"Bleu_{n}": plain[f"bleu_{n}"] for n in range(1, 5)}
        scores |= {"ROUGE_L": plain["rouge_l"], "CIDEr": plain["cider_d"]}
        return scores, [f"METEOR is left out and words are cut by our own rules: {why}"]
    scores = _by_coco(hypotheses, lists)
    remarks = []
    if spice:
        if why := spice_missing():
            remarks.append(f"SPICE is left out: {why}")
        else:
            from pycocoevalcap.spice.spice import Spice

            scores["SPICE"] = float(Spice().compute_score(*_tokenised(hypotheses, lists))[0])
    return scores, remarks


def _tokenised(hypotheses, lists):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    said = tokenizer.tokenize({i: [{"caption": words}] for i, words in enumerate(hypotheses)})
    true = tokenizer.tokenize({i: [{"caption": words} for words in entry] for i, entry in enumerate(lists)})
    return true, said


def _by_coco(hypotheses, lists) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    # Their programs print as they go.
    with contextlib.redirect_stdout(io.StringIO()):
        true, said = _tokenised(hypotheses, lists)
        scores = {f"Bleu_{n}": float(v) for n, v in enumerate(Bleu(4).compute_score(true, said)[0], 1)}
        meteor = Meteor()
        scores["METEOR"] = float(meteor.compute_score(true, said)[0])
        meteor.meteor_p.kill()
        meteor.meteor_p.wait()
        scores["ROUGE_L"] = float(Rouge().compute_score(true, said)[0])
        scores["CIDEr"] = float(Cider().compute_score(true, said)[0])
    return scores
