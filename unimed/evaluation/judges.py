"""Judges of statements: does a phrase follow from a report? A model behind OpenAI's interface, or a record.

The prompt has a version, and what a judge said can be kept and played back, so that a score can be had again without
the model, and two judges can be compared on the same questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
}
CURRENT = "entailment/1"


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


class Judge(Protocol):
    """Whoever judges; `name` and `prompt` (its version) stand beside every number that rests on it."""

    name: str
    prompt: str

    def judge(self, phrase: str, report: Sequence[str]) -> Judgement: ...


def question(phrase: str, report: Sequence[str]) -> str:
    """What is sent to a judge beside the instruction."""
    lines = [f"{number}. {statement}" for number, statement in enumerate(report, start=1)] or ["(the report is empty)"]
    return "Report:\n" + "\n".join(lines) + f"\n\nStatement: {phrase}"


def key_of(phrase: str, report: Sequence[str], prompt: str) -> str:
    """Digest of a question in a version of the prompt."""
    return hashlib.sha256(f"{prompt}\n{PROMPTS[prompt]}\n{question(phrase, report)}".encode()).hexdigest()


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
        found = self.held.get(key_of(phrase, report, self.prompt))
        if found is None:
            raise JudgeError(f"{self.path}: holds no judgement of {phrase!r:.80} by prompt {self.prompt}")
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
        key = key_of(phrase, report, self.prompt)
        if key in self.held:
            return self.held[key]
        messages = [
            {"role": "system", "content": PROMPTS[self.prompt]}, {"role": "user", "content": question(phrase, report)},
        ]  # fmt: skip
        answer = self.client.chat.completions.create(model=self.name, temperature=0, max_tokens=256, messages=messages)
        found = self.held[key] = read_judgement(answer.choices[0].message.content or "", len(report))
        if self.record is not None:
            append_json_line(self.record, {
                "key": key, "judge": self.name, "prompt": self.prompt, "phrase": phrase, "entailed": found.entailed,
                "evidence": list(found.evidence), "readable": found.readable,
            })  # fmt: skip
        return found


def read_record(path: Path, judge: str | None = None) -> tuple[dict[str, Judgement], set[str]]:
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
                held[line["key"]] = Judgement(bool(line["entailed"]), tuple(line["evidence"]), bool(line["readable"]))
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
