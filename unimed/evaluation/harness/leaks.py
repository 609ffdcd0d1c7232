"""What test data share with training data: patients, images (equal, or alike to the eye), and long texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unimed.data.near_duplicates import DigestTable, Names
from unimed.data.overlap import Fingerprint, Seen, look_of
from unimed.evaluation.contestants.base import is_stack
from unimed.evaluation.rows import answer_of
from unimed.io.windows import to_uint8
from unimed.metrics.text import normal_form
from unimed.progress import Progress
from unimed.structures import Sample

#: Answers shorter than this are given to many images ("no"), and say nothing about a leak.
LONG_WORDS = 12
KINDS = ("patient", "equal image", "image looks alike", "equal text")


@dataclass(frozen=True)
class Trace:
    """What a sample is recognized by. `images` are (sha256 of shape and pixels, 64 bits of its look or None)."""

    case: str
    patient: str
    images: tuple[tuple[str, int | None], ...]
    text: str


def trace_of(sample: Sample) -> Trace:
    """The trace of a sample; a volume is looked at in its middle slice and hashed whole."""
    images = []
    for image in sample.images:
        digest = hashlib.sha256(repr((image.shape, image.dtype.str)).encode() + np.ascontiguousarray(image).tobytes())
        flat = image[len(image) // 2] if is_stack(sample) else image
        flat = flat if flat.dtype == np.uint8 else to_uint8(flat)
        images.append((digest.hexdigest(), look_of(flat)))
    text = normal_form(answer_of(sample))
    return Trace(sample.sample_id, sample.patient_id, tuple(images), text if len(text.split()) >= LONG_WORDS else "")


def traces(samples: Sequence[Sample], what: str) -> Iterator[Trace]:
    """Traces of all samples, one by one, with progress."""
    with Progress(f"{what} sample, for leaks", len(samples)) as progress:
        for index in range(len(samples)):
            yield trace_of(samples[index])
            progress.step()


def find_leaks(train: Iterable[Trace], test: Sequence[Trace], bits: int = 2) -> dict[str, list[dict]]:
    """Kind -> test cases that are also in training: {"case", "found_as", "bits"}.

    Args:
        train: taken one by one; of each some 200 bytes are kept.
        bits: of 64 that may differ for two images to look alike. Slices of one scan, and radiographs of one view, often
            do without being the same: look at what is found. An image that is equal is not listed as alike.
    """
    names, patients, texts = Names(), DigestTable(), DigestTable()

    def prints() -> Iterator[Fingerprint]:
        for one in train:
            place = names.add(one.case)
            if one.patient:
                patients.add(_digest(one.patient), place)
            if one.text:
                texts.add(_digest(one.text), place)
            yield from (Fingerprint(one.case, digest, look) for digest, look in one.images)

    seen = Seen(prints(), bits)
    found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for kind, table, of in (
        ("patient", patients, lambda one: one.patient),
        ("equal text", texts, lambda one: one.text),
    ):
        places = table.find([_digest(of(one)) for one in test])
        for one, place in zip(test, places.tolist(), strict=True):
            if place >= 0 and of(one):
                found[kind].append({"case": one.case, "found_as": names[place]})
    mine = [Fingerprint(one.case, digest, look) for one in test for digest, look in one.images]
    for row in seen.find(mine):
        kind = "equal image" if row["kind"] == "equal bytes" else "image looks alike"
        found[kind].append({"case": row["image"], "found_as": row["found_as"], "bits": row["bits"]})
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def leak_table(found: dict[str, list[dict]], tests: int, trains: int) -> list[dict]:
    """A line per kind: how many of the test cases, and an example. Patients are named by their cases alone."""
    table = []
    for kind, rows in found.items():
        cases = list(dict.fromkeys(row["case"] for row in rows))
        example = f"{rows[0]['case']} = {rows[0]['found_as']}" if rows else ""
        table.append(
            {"shared with training": kind, "cases": len(cases), "of": tests, "training samples": trains,
             "example": example}
        )  # fmt: skip
    return table
