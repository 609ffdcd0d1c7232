"""Planned memory against what the allocator counted, for a step of the engine; what fits and what is advised."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from unimed.commands.cli import main
from unimed.data.collate.grounded import GroundedCollator
from unimed.engine import planning
from unimed.engine.config import load_config
from unimed.engine.memory import StepMemory
from unimed.engine.planning import Measured
from unimed.engine.strategies import build_strategy
from unimed.engine.training import build_optimizer, build_task, with_rates

TINY = dict(type="TinyGroundedMLLM", texts=["Segment the disc. It is [SEG]. shown"])
SMALL = dict(type="SmallGroundedMLLM", texts=["Segment the disc. It is [SEG]. shown"], hidden_dim=96, layers=2,
             mask_config=dict(model_type="unimed_light", image_size=64, width=32))  # fmt: skip


def settings(model, **changes):
    return load_config(dict(task=dict(type="GroundingTask", model=model), device="cpu") | changes)


def measured_peak(values, batch):
    """Bytes at the worst moment of the second step of the engine, as the allocator of the CPU counts them."""
    task = build_task(values).train()
    if values["gradient_checkpointing"]:
        task.gradient_checkpointing_enable()
    strategy = build_strategy("single", task, torch.device("cpu"), values["precision"])
    optimizer = build_optimizer(values["optimizer"], with_rates(task.train_parameters(), values["optimizer"]["lr"]))

    def step():
        loss = strategy.forward(batch)["loss"]
        strategy.backward(loss)
        del loss
        strategy.finish_gradients(optimizer, None)
        strategy.step(optimizer)

    step()
    states = [t for state in optimizer.state.values() for t in state.values()]
    fixed = sum(t.numel() * t.element_size() for t in [*task.parameters(), *task.buffers(), *states])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    changes = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        now += change.nbytes()
        peak = max(peak, now)
    return fixed + peak


@pytest.mark.parametrize(
    ("model", "size", "changes"),
    [
        (TINY, 2, {}),
        pytest.param(TINY, 3, dict(precision="bf16", gradient_checkpointing=True), marks=pytest.mark.slow),
        (SMALL, 4, dict(optimizer=dict(type="SGD", lr=1e-2))),
    ],
    ids=["tiny", "tiny, bf16, recomputed", "small, SGD"],
)
def test_planned_memory_is_what_is_measured(model, size, changes):
    values = settings(model, **changes)
    task = build_task(values).train()
    if values["gradient_checkpointing"]:
        task.gradient_checkpointing_enable()
    batch = GroundedCollator(task.processor)(planning.samples(size, 64, 150))
    planned = planning.measure_batch(task, batch, values, foreach=None)
    found = measured_peak(values, batch)
    error = abs(planning.need(planned, "single", 1).total - found) / found
    print(f"{found / 1e6:.1f} MB measured, planned with an error of {error:.2%}")
    assert error < 0.15
    assert planned.step.most == pytest.approx(planning.need(planned, "single", 1).total)


#: A model of 100 bytes of which 80 are units of 10; 60 learn, 50 of them in units.
STEP = StepMemory(parameters=100, trainable=60, gradients=60, optimizer=120, activations=40, peak=70, peak_gradients=20,
                  step_peak=5)  # fmt: skip
MEASURED = Measured(STEP, units=80, units_trainable=50, largest_unit=10)


def test_what_each_strategy_splits():
    needs = {name: planning.need(MEASURED, name, 4) for name in ("single", *planning.STRATEGIES)}
    assert needs["single"].total == 100 + 120 + 70 == STEP.most
    assert needs["ddp"].total == needs["single"].total + 60
    assert needs["fsdp2"][1:] == (100 / 4 + 20 + 20, 60 / 4 + 10 + 20, 120 / 4, 50)
    assert planning.need(MEASURED, "fsdp2", 4, accumulate=2).gradients == 60 / 4 + 60
    assert needs["zero1"].parameters == needs["zero2"].parameters == 100
    assert needs["zero1"].optimizer == needs["zero3"].optimizer == (120 + 60) / 4
    assert needs["zero2"].gradients == 60 / 4 + 10
    assert needs["zero3"].parameters == 80 / 4 + 20 + 20


def test_advice_is_the_smallest_change_that_fits():
    def measured(values):
        scale = values["batch_size"] * (1 if values["gradient_checkpointing"] else 4)
        return MEASURED._replace(step=STEP._replace(peak=20 + 50 * scale, activations=40 * scale))

    base = dict(batch_size=8, accumulate=2, gradient_checkpointing=False, strategy="auto")
    room = planning.GIB * (1 - planning.RESERVED)
    found = {}
    for limit in (2500, 800, 330):
        advice = planning.advise(base, 4, limit / room, measured)
        found[limit] = advice.options
        assert advice.ranks == 4 and advice.need.total <= limit
    assert found[2500] == dict(strategy="ddp")
    assert found[800] == dict(strategy="ddp", gradient_checkpointing=True)
    smaller = found[330]
    assert smaller["batch_size"] < 8 and smaller["batch_size"] * smaller["accumulate"] == 16
    assert planning.advise(base, 4, 180 / room, measured).ranks > 4
    assert planning.advise(base, 4, 1 / room, measured) is None


def test_the_verb_prints_a_table_and_says_what_to_change(tmp_path, capsys):
    config = tmp_path / "tiny.py"
    config.write_text(f"task = dict(type='GroundingTask', model={SMALL!r})\ncollate = dict(type='GroundedCollator')\n"
                      "batch_size = 2\n")  # fmt: skip
    options = [str(config), "--tokens", "64", "--image-size", "100", "--gpus", "2"]
    assert main(["plan", *options, "--memory", "1"]) == 0
    said = capsys.readouterr().out
    assert all(f"| {name} " in said for name in planning.STRATEGIES) and "Fits with --cfg-options strategy=ddp" in said
    assert main(["plan", *options, "--memory", "0.001"]) == 1
    said = capsys.readouterr().out
    assert "| no " in said and "batch_size=" in said
    assert (
        main(["plan", str(config), "--cfg-options", "task.model=dict(type='GroundedMLLM',backbone='x',sam2='y')"]) == 1
    )
    assert "'x' is not in the table of shapes" in capsys.readouterr().err
