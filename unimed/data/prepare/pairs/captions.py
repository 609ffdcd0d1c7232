"""Captions for images that come with labels only: templates, or an LLM the user names.

The published captions were written by an LLM from the labels and lie in annotation files; these here are ours, for
users who have the labels but not those files. A model trained on them has read other words.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from unimed.files import append_json_line, read_json_lines

#: What a template says of each kind of image: with findings, and without any. `{findings}` is a list in words,
#: `{place}` the part of the body.
TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "chest x-ray": (
        (
            "Frontal chest radiograph with {findings}.",
            "This chest X-ray shows {findings}.",
            "{Findings} on a frontal radiograph of the chest.",
            "X-ray of the thorax; {findings} can be seen.",
            "Chest film of a patient with {findings}.",
            "Radiographic signs of {findings} in the chest.",
            "The chest radiograph is read as {findings}.",
            "Plain film of the chest demonstrating {findings}.",
            "Thoracic X-ray image in which {findings} is present.",
            "A radiograph of lungs and heart with {findings}.",
        ),
        (
            "Frontal chest radiograph without abnormal findings.",
            "This chest X-ray looks normal.",
            "Clear lungs and a heart of normal size on a chest radiograph.",
            "X-ray of the thorax; nothing abnormal can be seen.",
            "Chest film of a patient without acute disease.",
            "No sign of disease on this radiograph of the chest.",
            "The chest radiograph is read as normal.",
            "Plain film of the chest with no abnormality.",
            "Thoracic X-ray image without consolidation or effusion.",
            "A normal radiograph of lungs and heart.",
        ),
    ),
    "radiology": (
        (
            "{modality} of the {place} showing {findings}.",
            "{Findings} on {modality} of the {place}.",
            "{modality} image: {place}, {findings}.",
            "A {modality} examination of the {place} with {findings}.",
            "The {place} as seen by {modality}; the finding is {findings}.",
            "{modality} slice through the {place} demonstrating {findings}.",
            "Imaging of the {place} by {modality} reveals {findings}.",
            "{place} {modality}, read as {findings}.",
            "In this {modality} picture of the {place} there is {findings}.",
            "Example of {findings} in the {place}, {modality}.",
        ),
        (
            "{modality} of the {place} without abnormal findings.",
            "Normal {place} on {modality}.",
            "{modality} image of a healthy {place}.",
            "A {modality} examination of the {place} with a normal result.",
            "The {place} as seen by {modality}; nothing abnormal.",
            "{modality} slice through the {place} with normal structures.",
            "Imaging of the {place} by {modality} reveals no disease.",
            "{place} {modality}, read as normal.",
            "In this {modality} picture the {place} looks normal.",
            "Example of a normal {place}, {modality}.",
        ),
    ),
    "fundus": (
        (
            "Fundus photograph with {findings}.",
            "Colour photograph of the retina showing {findings}.",
            "{Findings} seen in a picture of the eye's background.",
            "Retinal image of a patient with {findings}.",
            "This fundus image is graded as {findings}.",
            "The retina shows {findings}.",
            "Ophthalmic photograph demonstrating {findings}.",
            "An eye with {findings}, fundus view.",
            "Signs of {findings} on fundus photography.",
            "Picture of the posterior pole; {findings} is present.",
        ),
        (
            "Fundus photograph without abnormal findings.",
            "Colour photograph of a healthy retina.",
            "Nothing abnormal in this picture of the eye's background.",
            "Retinal image of a patient without eye disease.",
            "This fundus image is graded as normal.",
            "The retina looks normal.",
            "Ophthalmic photograph of a normal fundus.",
            "A healthy eye, fundus view.",
            "No sign of disease on fundus photography.",
            "Picture of the posterior pole with normal disc, macula and vessels.",
        ),
    ),
}
#: Labels that mean that nothing was found.
NORMAL = {"", "no finding", "normal", "healthy", "no findings", "normal findings"}
PROMPT = (
    "Write {count} different captions for a medical image with these labels: {labels}. Kind of image: {kind}. One "
    "sentence each; say nothing that the labels do not say. Answer with a JSON list of {count} strings alone."
)


class CaptionError(ValueError):
    """Captions that cannot be had: an unknown kind of image, or an LLM that gives no usable answer."""


def in_words(labels: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    labels = [label.strip() for label in labels]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def from_templates(kind: str, labels: Sequence[str], fields: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Ten captions of a kind of image ("chest x-ray", "radiology", "fundus") with these labels.

    Raises:
        CaptionError: unknown kind, or a field that its templates need is missing.
    """
    if kind not in TEMPLATES:
        raise CaptionError(f"there are no templates for {kind!r}; known are {', '.join(TEMPLATES)}")
    found = [label for label in labels if label.strip().lower() not in NORMAL]
    with_findings, without = TEMPLATES[kind]
    words = in_words([_lower(label) for label in found]) if found else ""
    values = {"findings": words, "Findings": words[:1].upper() + words[1:], **(fields or {})}
    try:
        captions = [template.format(**values) for template in (with_findings if found else without)]
    except KeyError as error:
        raise CaptionError(f"templates for {kind!r} need the field {error}") from error
    return tuple(caption[:1].upper() + caption[1:] for caption in captions)


def _lower(label: str) -> str:
    """Lower case, but abbreviations stay ("ACL tear")."""
    return " ".join(w if w.isupper() and len(w) > 1 else w.lower() for w in label.replace("_", " ").split())


class Rewriter:
    """Captions by an LLM behind an OpenAI-compatible `POST {url}/chat/completions`; every answer is kept and recorded.

    Args:
        url: such as `http://localhost:8000/v1`.
        model: as the server names it.
        cache: JSON lines file with one line per set of labels: labels, kind, model, prompt, captions.
        key_variable: environment variable that holds the key, if the server wants one.
        count: captions per set of labels.

    A set of labels is asked for once; an interrupted run finds in the file what it was told before.
    """

    def __init__(self, url: str, model: str, cache: str | Path, key_variable: str = "OPENAI_API_KEY", count: int = 10):
        if not url.startswith(("http://", "https://")):
            raise CaptionError(f"the address of an LLM begins with http:// or https://, got {url!r}")
        self.url, self.model, self.cache = url.rstrip("/"), model, Path(cache)
        self.key_variable, self.count = key_variable, count
        self.known: dict[str, tuple[str, ...]] = {}
        if self.cache.is_file():
            for number, row in read_json_lines(self.cache, error=CaptionError, torn_end=True):
                try:
                    self.known[row["key"]] = tuple(row["captions"])
                except (KeyError, TypeError):
                    raise CaptionError(f"{self.cache}:{number}: a line holds key and captions") from None

    def __call__(self, kind: str, labels: Sequence[str], fields: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Captions of these labels.

        Raises:
            CaptionError: the server cannot be reached or answers with something else than captions, three times.
        """
        described = [*labels, *(fields or {}).values()]
        prompt = PROMPT.format(count=self.count, labels="; ".join(described) or "no finding", kind=kind)
        key = hashlib.sha256(f"{self.model}\n{prompt}".encode()).hexdigest()
        if key not in self.known:
            captions = self._ask(prompt)
            row = {"key": key, "kind": kind, "labels": described, "model": self.model, "prompt": prompt}
            append_json_line(self.cache, row | {"captions": captions})
            self.known[key] = tuple(captions)
        return self.known[key]

    def _ask(self, prompt: str) -> list[str]:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0.7}
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {os.environ[self.key_variable]}"
        problem = ""
        for _ in range(3):
            request = urllib.request.Request(
                f"{self.url}/chat/completions", data=json.dumps(body).encode(), headers=headers
            )
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    content = json.loads(answer.read())["choices"][0]["message"]["content"]
                captions = json.loads(content[content.index("[") : content.rindex("]") + 1])
                if captions and all(isinstance(c, str) and c.strip() for c in captions):
                    return [" ".join(c.split()) for c in captions]
                problem = "it gave no list of sentences"
            except (urllib.error.URLError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
                problem = f"{type(error).__name__}: {error}"
        raise CaptionError(f"the LLM at {self.url} gave no captions in three tries ({problem})")
