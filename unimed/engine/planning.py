"""What a training will need before it is started: memory per rank and strategy, what fits, and what to change.

The task of a config is put on the meta device, a batch of drawn samples goes through a step of which only the shapes
are computed (`unimed.engine.memory`), and each strategy's way of splitting is applied to the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from unimed.engine.memory import StepMemory, step_memory
from unimed.engine.training import build_collator, build_optimizer, build_task, with_rates
from unimed.engine.zero import BUCKET
from unimed.geometry import Geometry
from unimed.models.building import described
from unimed.models.grounded import GroundedMLLM
from unimed.models.starting.skeleton import skeleton
from unimed.structures import Region, Sample

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
#: Fraction of a GPU that the driver, the libraries and gaps between tensors take.
RESERVED = 0.08
GIB = 2**30
_FP32 = 4
#: Arguments of tasks that name files of weights, or what is kept between steps.
_NOT_OF_SHAPES = ("vision_init", "text_init", "tokenizer", "cache_images", "cache_folder", "calibration")


class Need(NamedTuple):
    """Bytes of one rank at its worst moment; `working` are activations and buffers."""

    strategy: str
    parameters: float
    gradients: float
    optimizer: float
    working: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.working


class Measured(NamedTuple):
    """A step of one process, and how much of the task strategies split unit by unit.

    Attributes:
        step: of the whole model.
        units, units_trainable, largest_unit: bytes of the modules that `shard_modules` names, and of the largest.
    """

    step: StepMemory
    units: int
    units_trainable: int
    largest_unit: int


def samples(count: int, tokens: int, side: int, per_word: float = 1.0, points: str = "[SEG]") -> list[Sample]:
    """Drawn samples: an image of `side` pixels, a question, and an answer of about so many tokens.

    Args:
        points: what it points by: "[SEG]" (a mask), "[BOX]" (a box) or "" (nothing).
    """
    mask = np.zeros((side, side), dtype=bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    box = (side / 4, side / 4, side / 2, side / 2)
    regions = {"[SEG]": (Region("disc", mask=mask),), "[BOX]": (Region("disc", box_xyxy_px=box),)}
    answer = f"It is {points}. " + " ".join(["shown"] * max(0, int((tokens - 24) / per_word)))
    one = Sample(
        images=(np.zeros((side, side, 3), dtype=np.uint8),),
        geometry=Geometry.pixels(),
        sample_id="drawn",
        regions=regions.get(points, ()),
        conversation=(("user", "Segment the disc."), ("assistant", answer)),
        labels={
            "task": {"[SEG]": "referring", "[BOX]": "box"}.get(points, "vqa"),
            "captions": ("a disc",),
            "weights": (1.0,),
        },
    )
    return [replace(one, sample_id=f"drawn-{number}") for number in range(count)]


def measure(settings: Mapping[str, Any], tokens: int, side: int) -> Measured:
    """A step of the task of a config on drawn samples.

    Args:
        tokens: of the text of a sample.
        side: of its image, in pixels.

    Raises:
        ValueError: the shape of a part is not known, or the task cannot be put through a step of shapes alone.
    """
    task = task_of_shapes(settings).train()
    if settings["gradient_checkpointing"]:
        task.gradient_checkpointing_enable()
    collator = build_collator(settings["collate"], task)
    per_word, points = 1.0, _points_by(task)
    probe = collator(samples(1, 224, side, points=points))
    if isinstance(probe.get("input_ids"), torch.Tensor):
        # A drawn word may be several tokens of this tokenizer.
        long = collator(samples(1, 424, side, points=points))["input_ids"].shape[1]
        per_word = max(1.0, (long - probe["input_ids"].shape[1]) / 200)
    batch = collator(samples(settings["batch_size"], tokens, side, per_word, points))
    return measure_batch(task, batch, settings, foreach=True)


def _points_by(task) -> str:
    """What answers of a task point by, see `samples`."""
    if not isinstance(task.model, GroundedMLLM):
        return "[SEG]"
    heads = task.model.mask_head is not None and task.model.config.seg_token_id >= 0, task.model.box_head is not None
    return "[SEG]" if heads[0] else "[BOX]" if heads[1] else ""


def measure_batch(task, batch: Mapping[str, Any], settings: Mapping[str, Any], foreach: bool | None) -> Measured:
    """A step of a task on a batch, see `unimed.engine.memory.step_memory`."""
    units = [{id(p): p for p in module.parameters()} for module in task.shard_modules()]
    sizes = [_size(unit.values()) for unit in units]
    learning = sum(_size(p for p in unit.values() if p.requires_grad) for unit in units)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[settings["precision"]]

    def optimizer(parameters):
        return build_optimizer(settings["optimizer"], with_rates(parameters, settings["optimizer"]["lr"]))

    try:
        step = step_memory(task, batch, optimizer, dtype, foreach)
    except RuntimeError as error:
        raise ValueError(
            f"{type(task).__name__} decides by computed numbers what it does next, so that its memory cannot be "
            f"planned: {type(error).__name__} {str(error).splitlines()[0]}"
        ) from error
    return Measured(step, sum(sizes), learning, max(sizes, default=0))


def task_of_shapes(settings: Mapping[str, Any]):
    """The task of a config; a model of published parts lies on the meta device and needs none of their weights."""
    entry = dict(settings["task"])
    from unimed.tasks.grounding import UNTYPED

    if "model" in entry:
        # Training of contrastive towers makes a bias for them where the loss needs one.
        extra = {"sigmoid": True} if entry.get("loss") == "siglip" else {}
        found = skeleton({**described(entry["model"], UNTYPED), **extra})
        if found is not None:
            # Files that parts start from, and features that are kept, change no shape.
            entry = {name: value for name, value in entry.items() if name not in _NOT_OF_SHAPES} | {"model": found}
            with torch.device("meta"):
                return build_task({"task": entry})
    return build_task(settings)


def need(measured: Measured, strategy: str, ranks: int, accumulate: int = 1) -> Need:
    """What one of `ranks` holds under a strategy; see docs/clusters.md for what each splits."""
    step = measured.step
    rest = step.parameters - measured.units
    rest_trainable = step.trainable - measured.units_trainable
    two_units = 2 * measured.largest_unit  # the one that runs, and the next one that is gathered meanwhile
    if strategy in ("single", "ddp"):
        # The reducer of DDP has buffers of its own for all gradients.
        buffers = step.gradients if strategy == "ddp" else 0
        in_backward = step.parameters + step.optimizer + step.peak
        in_step = step.parameters + step.optimizer + step.gradients + step.step_peak
        worst = max(in_backward, in_step)
        gradients = step.peak_gradients if worst == in_backward else step.gradients
        working = worst - step.parameters - step.optimizer - gradients
        return Need(strategy, step.parameters, gradients + buffers, step.optimizer, working)
    if strategy == "fsdp2":
        # What is no unit stays whole from the forward to the end of the backward pass, its gradients too; between
        # micro-batches of one step gradients are kept whole.
        gradients = step.gradients / ranks + (
            step.gradients if accumulate > 1 else rest_trainable + min(two_units, measured.units_trainable)
        )
        parameters = step.parameters / ranks + rest + min(two_units, measured.units)
        return Need(strategy, parameters, gradients, step.optimizer / ranks, step.working)
    stage = int(strategy[-1])
    elements = step.trainable / _FP32
    buckets = 2 * _FP32 * min(BUCKET, elements)
    optimizer = step.optimizer / ranks + _FP32 * elements / ranks  # DeepSpeed keeps a copy of the weights it steps
    late = rest_trainable  # gradients that are reduced after the backward pass
    gradients = step.gradients if stage == 1 else step.gradients / ranks + late
    parameters = step.parameters
    if stage == 3:
        parameters = measured.units / ranks + rest + min(two_units, measured.units)
    return Need(strategy, parameters, gradients, optimizer, step.working + buckets)


def fits(one: Need, memory_gib: float) -> bool:
    """Whether a rank stays within a GPU of so much memory."""
    return one.total <= memory_gib * GIB * (1 - RESERVED)


class Advice(NamedTuple):
    """Changes to a config under which it fits: options for `--cfg-options`, and what a rank then needs."""

    options: dict[str, Any]
    ranks: int
    need: Need


def advise(
    settings: Mapping[str, Any], ranks: int, memory_gib: float, measured: Callable[[Mapping[str, Any]], Measured]
) -> Advice | None:
    """The smallest change under which a training fits, in this order: strategy, recomputed activations, smaller
    micro-batches (the step keeps its samples), more GPUs.

    Args:
        measured: settings -> a step.
    """
    for changes in _changes(settings):
        step = measured({**settings, **changes})
        accumulate = changes.get("accumulate", settings["accumulate"])
        wanted = [settings["strategy"], *STRATEGIES]
        for strategy in [one for one in dict.fromkeys(wanted) if one in STRATEGIES and ranks > 1] or ["single"]:
            found = need(step, strategy, ranks, accumulate)
            if fits(found, memory_gib):
                return Advice({"strategy": strategy, **changes}, ranks, found)
    last = list(_changes(settings))[-1]
    step = measured({**settings, **last})
    for more in (2**power for power in range(int(math.log2(ranks)) + 1, 13)):
        found = need(step, "fsdp2", more, last.get("accumulate", settings["accumulate"]))
        if fits(found, memory_gib):
            return Advice({"strategy": "fsdp2", **last}, more, found)
    return None


def _changes(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {}
    recomputed = {} if settings["gradient_checkpointing"] else {"gradient_checkpointing": True}
    if recomputed:
        yield recomputed
    size, accumulate = settings["batch_size"], settings["accumulate"]
    while size > 1:
        smaller = max(1, size // 2)
        accumulate, size = accumulate * size // smaller, smaller
        yield recomputed | {"batch_size": size, "accumulate": accumulate}


def _size(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
