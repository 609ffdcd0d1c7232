"""Contracts of data sets and collators: what the engine asks of them, and what it may ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from unimed.structures import Sample


@runtime_checkable
class SampleDataset(Protocol):
    """A data set: registered in `DATASETS`, built from a config, read by index in any order and in worker processes.

    `[index]` is the same sample each time under the same seed of `random`, `numpy.random` and torch, which the engine
    sets per sample and epoch; a reader may use any of the three. What cannot be read raises an error that names the
    file and the record: the engine names it and goes on with another one. It must survive pickling.

    Methods it may have beside these two:

    - `length_of(index) -> int`: about how many tokens a sample has, for `group_by_length` and `token_budget`;
    - `set_epoch(epoch)`: called before a sample of that epoch is read;
    - `alternative(index, attempt) -> int`: which sample is read in place of a broken one (the next one by default);
    - `remarks`: list of strings, what a check of the data should tell of harmless oddities.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Collator(Protocol):
    """Samples to the batch of a task: registered in `COLLATORS`, called in worker processes.

    It is built with `processor=` (that of the task's model) where the task has one. It may have `write(sample) ->
    Sample`, called with the sample's own seed, where wordings are drawn.
    """

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Any]: ...


def contract_problems(sample: Any) -> list[str]:
    """In what a sample is not what the engine, checks and scorers rely on; [] where all is well."""
    if not isinstance(sample, Sample):
        return [f"it is a {type(sample).__name__}, not a Sample"]
    found = [] if sample.sample_id else ["it has no sample_id"]
    for number, image in enumerate(sample.images):
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or not image.size:
            found.append(f"image {number} is no array HxW, HxWx3 or DxHxW")
    try:
        _ = sample.task
    except ValueError as error:
        found.append(str(error))
    for turn in sample.conversation:
        if len(turn) != 2 or turn[0] not in ("user", "assistant") or not isinstance(turn[1], str):
            found.append(f"{turn!r:.60} is no turn (role, text)")
    for region in sample.regions:
        if region.mask is not None and sample.images:
            image = sample.images[0]
            shapes = {image.shape, image.shape[:2]}
            if region.mask.shape not in shapes:
                found.append(f"the mask of {region.phrase!r} is {region.mask.shape}, its image {image.shape}")
    if not (sample.conversation or sample.regions or sample.labels.get("captions")):
        found.append("it has neither a conversation, nor regions, nor captions to learn from")
    return found
