"""What stands beside every score: leaks, answers that look at no image, and the frame of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimed.evaluation.benchmarks.declaring import Benchmark
from unimed.evaluation.contestants.base import Contestant, asked, contestant
from unimed.evaluation.harness.frame import FrameReport, frame_test, refuse_wrong_frame
from unimed.evaluation.harness.frozen import Frozen, frozen
from unimed.evaluation.harness.leaks import find_leaks, leak_table, traces
from unimed.evaluation.harness.running import Samples, headline_of, score
from unimed.structures import Sample

#: Contestants that look at no image.
BLIND = ("no:", "everything:", "prior:")


def frame_of(one: Contestant, name: str) -> FrameReport | None:
    """What the drawn images tell of a contestant; None where it reads no boxes from text.

    Raises:
        FrameError: they are read in a wrong frame.
    """
    if not one.frame_checked:
        return None
    report = frame_test(one)
    refuse_wrong_frame(report, name)
    return report


def trained_on(against: str) -> Samples:
    """The records a model was trained on.

    Raises:
        FileNotFoundError: there are none in that folder.
    """
    from unimed.data.readers.records import RecordDataset

    return Samples(RecordDataset(against, split="train"))


def leaks_of(samples: Samples, train: Samples | None, against: str | None) -> tuple[list[dict], str]:
    """(lines of the table, what was compared): with the training part, and records a model was trained on."""
    parts: list[tuple[str, Sequence[Sample]]] = []
    if train is not None:
        parts.append(("the training part", train))
    if against:
        parts.append((f"the records in {Path(against).name}", trained_on(against)))
    if not parts:
        return [], "no training data to compare with: give those of the model with --against FOLDER"
    test = list(traces(samples, "test"))
    lines = []
    for name, part in parts:
        found = find_leaks(traces(part, "training"), test)
        lines += [{"training data": name, **line} for line in leak_table(found, len(test), len(part))]
    return lines, " and ".join(name for name, _ in parts)


def baselines(one: Benchmark, samples: Samples, train: Samples | None, salted: Path, resamples: int) -> list[dict]:
    """A line per contestant that looks at no image: its headline."""
    lines = []
    for word in BLIND:
        blind = contestant(word)
        if word == "prior:":
            if train is None:
                continue
            blind.learn(train)
        answers = []
        for index in range(len(samples)):
            sample = samples[index]
            answers.append(frozen(sample.sample_id, blind.answer_case(asked(sample))))
        head = headline_of(one, score(one, samples, Frozen(answers), salted, resamples).rows, resamples)
        lines.append({"answers without a look": word.rstrip(":"), head["metric"]: head["mean"]})
    return lines
