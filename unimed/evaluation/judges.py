"""Judges of reports: does a phrase follow from a report, which errors does a report hold? A model, or a record.

The prompt has a version, and what a judge said can be kept and played back, so that a score can be had again without
the model, and two judges can be compared on the same questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from unimed.files import append_json_line, read_json_lines

#: Version -> instruction. A version never changes; another wording is another version.
PROMPTS = {
    "entailment/1": (
        "You compare statements of radiology reports. You are given numbered statements of one report and one further "
        "statement. Decide whether the further statement is entailed by the report: everything it says must follow "
        "from the report, with the same side, place, degree and certainty. Name the statements of the report that it "
        'follows from. Answer with one JSON object and nothing else: {"entailed": true or false, "evidence": [numbers]}'
    ),
    "errors/1": (
        "You compare a candidate radiology report with a reference report of the same images. Count the findings of "
        "the candidate that match the reference, and count its errors by kind: false_finding (stated, not in the "
        "reference), missing_finding (in the reference, not stated), wrong_place, wrong_severity, false_comparison "
        "(a comparison with an earlier study that the reference does not make), missing_comparison. Count errors that "
        "would change care as significant, others as insignificant. Style and order do not count. Answer with one JSON "
        'object and nothing else: {"matched": number, "significant": {kind: number}, "insignificant": {kind: number}}'
    ),
}
CURRENT = "entailment/1"
ERRORS = "errors/1"
#: Kinds of errors in a report, as GREEN counts them (arXiv 2405.03595).
ERROR_KINDS = ("false_finding", "missing_finding", "wrong_place", "wrong_severity", "false_comparison",
               "missing_comparison")  # fmt: skip


class JudgeError(ValueError):
    """A judge that cannot be asked, or a record that lacks a judgement."""


@dataclass(frozen=True)
class Judgement:
    """Whether a phrase follows from a report, and from which of its statements (places from 0).

    `readable` is False where the answer of a model was no such object; nothing is entailed then.
    """

    entailed: bool
    evidence: tuple[int, ...] = ()
    readable: bool = True


@dataclass(frozen=True)
class ErrorCounts:
    """Findings of a report that match the reference, and its errors by kind (`ERROR_KINDS`, those that occur).

    `readable` is False where the answer of a model was no such object.
    """

    matched: int = 0
    significant: dict[str, int] = field(default_factory=dict)
    insignificant: dict[str, int] = field(default_factory=dict)
    readable: bool = True


class Judge(Protocol):
    """Whoever judges; `name` and `prompt` (its version) stand beside every number that rests on it."""

    name: str
    prompt: str

    def judge(self, phrase: str, report: Sequence[str]) -> Judgement: ...

    def count_errors(self, candidate: str, reference: str) -> ErrorCounts: ...


def question(phrase: str, report: Sequence[str]) -> str:
    """What is sent to a judge beside the instruction."""
    lines = [f"{number}. {statement}" for number, statement in enumerate(report, start=1)] or ["(the report is empty)"]
    return "Report:\n" + "\n".join(lines) + f"\n\nStatement: {phrase}"


def error_question(candidate: str, reference: str) -> str:
    """What is sent to a judge that counts errors."""
    return f"Reference report:\n{reference}\n\nCandidate report:\n{candidate}"


def key_of(text: str, prompt: str) -> str:
    """Digest of a question in a version of the prompt."""
    return hashlib.sha256(f"{prompt}\n{PROMPTS[prompt]}\n{text}".encode()).hexdigest()


def read_judgement(text: str, statements: int) -> Judgement:
    """The judgement in an answer: the last JSON object with `entailed`; numbers beyond the report are left out."""
    for found in reversed(re.findall(r"\{[^{}]*\}", text)):
        try:
            values = json.loads(found)
        except ValueError:
            continue
        if isinstance(values.get("entailed"), bool):
            numbers = [n for n in values.get("evidence") or () if isinstance(n, int) and 1 <= n <= statements]
            return Judgement(values["entailed"], tuple(n - 1 for n in numbers) if values["entailed"] else ())
    return Judgement(False, readable=False)


def read_errors(text: str) -> ErrorCounts:
    """The counts in an answer: the outermost JSON object with `matched`; kinds nobody asked for are left out."""
    decoder = json.JSONDecoder()
    for start in (found.start() for found in re.finditer(r"\{", text)):
        try:
            values, _ = decoder.raw_decode(text[start:])
        except ValueError:
            continue
        if _is_count(values.get("matched")):
            parts = (values.get(name) for name in ("significant", "insignificant"))
            kept = [
                {kind: part[kind] for kind in ERROR_KINDS if _is_count(part.get(kind)) and part[kind]}
                if isinstance(part, dict) else {}
                for part in parts
            ]  # fmt: skip
            return ErrorCounts(values["matched"], *kept)
    return ErrorCounts(readable=False)


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class RecordedJudge:
    """Judgements that were kept, played back.

    Raises:
        JudgeError: no such file; on asking, a question it does not hold.
    """

    def __init__(self, path: str | Path, prompt: str = CURRENT):
        self.path, self.prompt = Path(path), prompt
        if not self.path.is_file():
            raise JudgeError(f"{path}: no such record of judgements")
        self.held, names = read_record(self.path)
        self.name = " and ".join(sorted(names)) + ", recorded"

    def judge(self, phrase: str, report: Sequence[str]) -> Judgement:
        return self._recorded(question(phrase, report), self.prompt, phrase)

    def count_errors(self, candidate: str, reference: str) -> ErrorCounts:
        return self._recorded(error_question(candidate, reference), ERRORS, candidate)

    def _recorded(self, text: str, prompt: str, what: str):
        found = self.held.get(key_of(text, prompt))
        if found is None:
            raise JudgeError(f"{self.path}: holds no judgement of {what!r:.80} by prompt {prompt}")
        return found


class EndpointJudge:
    """A model behind OpenAI's chat completions, asked at temperature 0.

    Args:
        model: its name at the endpoint. url: http://HOST/v1.
        key_variable: environment variable with the key.
        record: file of JSON lines that judgements are added to; what it holds of this model is not asked again.

    Raises:
        JudgeError: no model or address. ImportError: on asking, the client is not installed.
    """

    def __init__(self, model: str, url: str, key_variable: str = "OPENAI_API_KEY", prompt: str = CURRENT, record=None):
        if not model or not url:
            raise JudgeError("a judge needs a model and an address: --judge MODEL --judge-url http://HOST/v1")
        self.name, self.prompt, self.url, self.key_variable = model, prompt, url, key_variable
        self.record, self.held = None if record is None else Path(record), {}
        if self.record is not None and self.record.is_file():
            self.held, _ = read_record(self.record, model)

    @cached_property
    def client(self):
        try:
            import openai
        except ImportError as error:
            raise ImportError("a judge needs OpenAI's client: pip install 'unimed[bench]'") from error
        return openai.OpenAI(base_url=self.url, api_key=os.environ.get(self.key_variable) or "none", max_retries=2)

    def judge(self, phrase: str, report: Sequence[str]) -> Judgement:
        return self._ask(question(phrase, report), self.prompt, lambda text: read_judgement(text, len(report)), {
            "phrase": phrase,
        })  # fmt: skip

    def count_errors(self, candidate: str, reference: str) -> ErrorCounts:
        return self._ask(error_question(candidate, reference), ERRORS, read_errors, {})

    def _ask(self, text: str, prompt: str, read, more: dict):
        key = key_of(text, prompt)
        if key in self.held:
            return self.held[key]
        messages = [{"role": "system", "content": PROMPTS[prompt]}, {"role": "user", "content": text}]
        answer = self.client.chat.completions.create(model=self.name, temperature=0, max_tokens=512, messages=messages)
        found = self.held[key] = read(answer.choices[0].message.content or "")
        if self.record is not None:
            line = {"key": key, "judge": self.name, "prompt": prompt, **more, **asdict(found)}
            append_json_line(self.record, line)
        return found


def read_record(path: Path, judge: str | None = None) -> tuple[dict[str, Judgement | ErrorCounts], set[str]]:
    """(judgements by the digest of their question, names of the judges) of a record.

    Args:
        judge: of this one alone.

    Raises:
        JudgeError: a line that is no judgement.
    """
    held, names = {}, set()
    for number, line in read_json_lines(path, error=JudgeError, torn_end=True):
        try:
            if judge is None or line["judge"] == judge:
                readable = bool(line["readable"])
                held[line["key"]] = (
                    ErrorCounts(int(line["matched"]), line["significant"], line["insignificant"], readable)
                    if "matched" in line
                    else Judgement(bool(line["entailed"]), tuple(line["evidence"]), readable)
                )
                names.add(str(line["judge"]))
        except (KeyError, TypeError) as error:
            raise JudgeError(f"{path}:{number}: no judgement ({error} is missing)") from None
    return held, names


def agreement(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """How far two judges agree: the fraction of equal judgements and Cohen's kappa (NaN where chance explains all).

    Raises:
        ValueError: none, or another number of judgements.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} judgements cannot be compared with {len(second)}")
    count = len(first)
    equal = sum(a == b for a, b in zip(first, second, strict=True)) / count
    yes = sum(first) / count, sum(second) / count
    chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    return {"agreement": equal, "kappa": float("nan") if chance == 1 else (equal - chance) / (1 - chance)}
