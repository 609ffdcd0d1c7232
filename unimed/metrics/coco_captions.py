"""Caption metrics under the names of the COCO caption tools; their METEOR needs Java, and where it is missing that is
said.

Texts are cut by `words.ptb_tokens` with and without Java, so that a number does not depend on the machine. What goes to
a program outside is one line of visible characters (`words.one_line`); empty texts never go there and are counted here.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import io
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unimed.metrics import text
from unimed.metrics.words import one_line, ptb_tokens

NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
#: Stands for an empty text: a word nobody writes, so that it matches nothing.
_NOTHING = "qzemptytextqz"


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
    if any(any(place.glob("spice/lib/stanford-corenlp-*.jar")) for place in _places("pycocoevalcap")):
        return ""
    return "SPICE needs Stanford CoreNLP 3.6.0 in pycocoevalcap/spice/lib (its own get_stanford_models fetches it)"


def _places(package: str) -> list[Path]:
    """Folders of a package, without importing it."""
    spec = importlib.util.find_spec(package)
    return [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]


def caption_scores(
    hypotheses: Sequence[str],
    references: Sequence,
    spice: bool = False,
    java: bool | None = None,
    compat: str | None = None,
) -> tuple[dict[str, float], list[str]]:
    """BLEU-1..4, METEOR, ROUGE-L and CIDEr of a corpus under the names of the COCO tools, and remarks.

    Args:
        references: one text, or a list of texts, per hypothesis; an empty one counts as a text nothing matches but
            another empty one.
        spice: also SPICE, where it can be had.
        java: True insists on the COCO tools, False never starts them; None takes them where they are.
        compat: "reference" cuts texts by the Java tokenizer where it is, and gives BLEU its published constants; both
            differ from the default in the texts it cuts otherwise (emoticons, some addresses) and in corpora without
            a single text of four words.

    Returns:
        scores (METEOR is left out where Java is missing: its exact stage alone would be another number), and what was
        missing, in words.

    Raises:
        RuntimeError: `java` is True and the tools are missing.
        ValueError: no texts, counts differ, or a list of references is empty.
    """
    if not len(hypotheses) or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses and {len(references)} references; they are pairs, at least one")
    lists = [[entry] if isinstance(entry, str) else list(entry) for entry in references]
    if not all(lists):
        raise ValueError(f"references[{[bool(entry) for entry in lists].index(False)}] holds no text")
    why = missing() if java is not False else "the COCO caption tools were not to be started here"
    if java and why:
        raise RuntimeError(f"the COCO caption tools cannot run: {why}")
    predicted = [" ".join(ptb_tokens(words)) for words in hypotheses]
    true = [[" ".join(ptb_tokens(words)) for words in entry] for entry in lists]
    remarks = [f"METEOR is left out: {why}"] if why else []
    if compat == "reference" and why:
        remarks.append("words are cut by our own rules and not by the published tokenizer")
    elif compat == "reference":
        predicted, true = _java_tokens(hypotheses, lists)
    plain = text.captions(predicted, true, tokenize=str.split, compat=compat)
    scores = {f"Bleu_{n}": plain[f"bleu_{n}"] for n in range(1, 5)}
    if not why:
        scores["METEOR"] = meteor(predicted, true)
    scores |= {"ROUGE_L": plain["rouge_l"], "CIDEr": plain["cider_d"]}
    if spice:
        if why := spice_missing():
            remarks.append(f"SPICE is left out: {why}")
        else:
            scores["SPICE"] = _spice(predicted, true)
    return scores, remarks


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR 1.5 of a corpus by its Java program, from tokens joined by blanks; two empty texts match wholly.

    Raises:
        RuntimeError: the program answers with something else than numbers.
    """
    pairs = [
        (_NOTHING if not _line(h) else _line(h), [_line(r) or f"{_NOTHING}{'' if not _line(h) else 'x'}" for r in refs])
        for h, refs in zip(hypotheses, references, strict=True)
    ]
    with _meteor.conversation() as ask:
        counts = [ask(" ||| ".join(["SCORE", *refs, hyp])) for hyp, refs in pairs]
        value = ask(" ||| ".join(["EVAL", *counts]), lines=len(pairs) + 1)
    try:
        return float(value)
    except ValueError:
        raise RuntimeError(f"METEOR did not answer with a number: {value!r}") from None


class _Meteor:
    """The Java program, started when it is first asked: it reads its tables for seconds, and answers in milliseconds.

    It ends with this process, after `IDLE_S` without a question, and when a conversation broke off.
    """

    IDLE_S = 60.0

    def __init__(self):
        self._lock = threading.RLock()
        self._program: Any = None  # a `subprocess.Popen` with pipes, while it runs
        self._owner = 0
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def conversation(self):
        """Gives a function that sends a line and returns the last of the lines that answer it."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            # A forked process must not talk to the program of its parent.
            if self._program is None or self._owner != os.getpid() or self._program.poll() is not None:
                self._program, self._owner = self._start(), os.getpid()
            try:
                yield self._ask
            except BaseException:
                self.stop()  # what it still had to answer would answer the next question
                raise
            self._timer = threading.Timer(self.IDLE_S, self.stop)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """End the program; the next conversation starts another."""
        with self._lock:
            program, self._program = self._program, None
            if program is not None and self._owner == os.getpid():
                program.kill()
                program.wait()

    def _start(self) -> subprocess.Popen:
        from pycocoevalcap.meteor import meteor as module
        from pycocoevalcap.meteor.meteor import METEOR_JAR

        atexit.register(self.stop)
        command = ["java", "-Xmx2G", "-jar", METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
        folder, pipe = Path(module.__file__).parent, subprocess.PIPE
        return subprocess.Popen(
            command, cwd=folder, encoding="utf-8", stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )

    def _ask(self, line: str, lines: int = 1) -> str:
        self._program.stdin.write(line + "\n")
        self._program.stdin.flush()
        answers = [self._program.stdout.readline().strip() for _ in range(lines)]
        if not answers[-1] or answers[-1].startswith("Error"):
            raise RuntimeError(f"METEOR gave no score for {line[:80]!r}: {answers[-1] or 'the program ended'}")
        return answers[-1]


_meteor = _Meteor()


def _line(words: str) -> str:
    return " ".join(one_line(words).replace("|", " ").split())


def _java_tokens(hypotheses, lists) -> tuple[list[str], list[list[str]]]:
    """Texts as the Java tokenizer cuts them, words joined by blanks."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    flat = [*hypotheses, *(words for entry in lists for words in entry)]
    # An empty line may be lost on the way, so each text is closed by a word of its own.
    lines = "".join(f"{one_line(words)} {_NOTHING}\n" for words in flat)
    folder = _places("pycocoevalcap.tokenizer")[0]
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", STANFORD_CORENLP_3_4_1_JAR]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    done = subprocess.run(command, cwd=folder, input=lines.encode(), capture_output=True, check=False)
    found = done.stdout.decode().rstrip("\n").split("\n")
    if done.returncode or len(found) != len(flat):
        raise RuntimeError(f"the Java tokenizer gave {len(found)} lines for {len(flat)} texts")
    kept = iter(" ".join(w for w in line.split() if w not in (*PUNCTUATIONS, _NOTHING)) for line in found)
    return [next(kept) for _ in hypotheses], [[next(kept) for _ in entry] for entry in lists]


def _spice(predicted, true) -> float:
    from pycocoevalcap.spice.spice import Spice

    given = {i: [words or _NOTHING] for i, words in enumerate(predicted)}
    known = {i: [words or f"{_NOTHING}x" for words in entry] for i, entry in enumerate(true)}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        return float(Spice().compute_score(known, given)[0])
