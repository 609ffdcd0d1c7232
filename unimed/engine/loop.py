"""The training loop: one iteration is one optimizer step, whatever it takes to make it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop

from unimed.engine.checkpoint import Checkpoint
from unimed.engine.errors import TrainingError
from unimed.engine.strategy import total, world
from unimed.engine.stream import to_device
from unimed.progress import Progress


def schedule_factor(schedule: Mapping, step: int, max_steps: int) -> float:
    """Learning rate at `step` (0-based) as a fraction of the base rate: linear warm-up, then the named curve.

    The base rate itself comes in the step after the warm-up, or with `warmup_full` in its last step (as in open_clip).

    Raises:
        ValueError: unknown type.
    """
    warmup, kind, low = schedule["warmup"], schedule["type"], schedule["min_ratio"]
    warmup = int(warmup * max_steps) if 0 < warmup < 1 else int(warmup)
    if step < warmup:
        return (step + 1) / (warmup if schedule["warmup_full"] else warmup + 1)
    done = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return low + (1 - low) * (1 - done)
    if kind == "cosine":
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    if kind == "multistep":
        return schedule["gamma"] ** sum(step >= milestone for milestone in schedule["milestones"])
    raise ValueError(f"unknown schedule {kind!r}; valid: constant, linear, cosine, multistep")


@LOOPS.register_module()
class EngineLoop(BaseLoop):
    """mmengine's iteration loop with accumulation, guards, exact state, and graceful shutdown.

    Args:
        runner: the EngineRunner.
        dataloader: a `Stream`.
    """

    def __init__(self, runner, dataloader):
        super().__init__(runner, dataloader)
        self._iter, self._epoch = 0, 0
        self.stop_training = False
        self.stop_reason = ""
        self.bad_steps = self.bad_in_a_row = self.broken = 0

    max_iters = property(lambda self: self.runner.settings["max_steps"])
    max_epochs = property(lambda self: 1)
    iter = property(lambda self: self._iter)
    epoch = property(lambda self: self._epoch)

    def run(self):
        runner, settings = self.runner, self.runner.settings
        every, validate_every = settings["checkpoint"]["interval"], settings["validate_interval"]
        runner.shutdown.interruptible = False
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        runner.model.train()
        saved = None
        progress = Progress("training step", self.max_iters, self._iter)
        while self._iter < self.max_iters and not self.stop_training:
            with progress:
                self.run_step()
            progress.at(self._iter)
            due = validate_every and (self._iter % validate_every == 0 or self._iter == self.max_iters)
            validates = bool(due) and runner.validation is not None
            saves = (every and self._iter % every == 0) or self._iter == self.max_iters
            if (validates or saves) and not self.stop_training:
                # Saved first: whatever becomes of the validation, the steps are not lost.
                runner.save_checkpoint(wait=self._iter == self.max_iters, prune=bool(saves))
                saved = self._iter
            if validates and not self.stop_training:
                if runner.validate() is None:
                    self._stop()
                elif not saves:
                    runner.discard_checkpoint()
                runner.model.train()
        # The end, and a stop that was asked for, leave a checkpoint behind.
        if saved != self._iter:
            runner.save_checkpoint()
        runner.finish_saving()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def _stop(self) -> None:
        """The end of the loop after this step."""
        self.stop_training = True
        self.stop_reason = self.runner.shutdown.requested or "signal on another rank"

    def run_step(self) -> None:
        runner, settings, strategy = self.runner, self.runner.settings, self.runner.strategy
        optimizer, accumulate = runner.optim_wrapper.optimizer, settings["accumulate"]
        began = time.perf_counter()
        runner.watchdog.beat(f"reading the data of step {self._iter + 1}", details=self._in_flight)
        micro = [next(self.dataloader) for _ in range(accumulate)]
        waited = time.perf_counter() - began
        runner.watchdog.beat(f"training step {self._iter + 1}", waiting=world()[1] > 1)
        batches = [to_device(batch, strategy.device) for batch, _ in micro]
        self._share_normalizers(batches, runner.model)
        factor = schedule_factor(settings["schedule"], self._iter, self.max_iters)
        for group, rate in zip(optimizer.param_groups, runner.base_rates, strict=True):
            group["lr"] = rate * factor
        runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=batches)
        scalars: dict[str, float] = {}
        for number, batch in enumerate(batches):
            with strategy.accumulating(last=number + 1 == accumulate):
                outputs = strategy.forward(batch)
                strategy.backward(outputs["loss"] / accumulate)
            for name, value in outputs.items():
                if torch.is_tensor(value) and value.numel() == 1:
                    scalars[name] = scalars.get(name, 0.0) + float(value.detach()) / accumulate
        norm = strategy.finish_gradients(optimizer, settings["clip"])
        finite = math.isfinite(scalars["loss"]) and (math.isfinite(norm) or strategy.scaler.is_enabled())
        broken = [record for _, information in micro for record in information["broken"]]
        sums = total(
            [
                0.0 if finite else 1.0,
                1.0 if runner.shutdown.requested else 0.0,
                float(len(broken)),
                float(sum(information["samples"] for _, information in micro)),
                float(sum(_tokens(batch) for batch in batches)),
                scalars["loss"],
            ],
            strategy.device,
        )
        if sums[0]:
            ids = [i for batch in batches for i in batch.get("sample_ids", ())]
            self._refuse_step(finite, scalars["loss"], norm, ids)
            strategy.skip(optimizer)
        else:
            self.bad_in_a_row = 0
            strategy.step(optimizer)
            strategy.task.after_step()
            runner.update_average()
        self._iter += 1
        copies = world()[1] / runner.data_ranks  # of each sample
        self.note_broken(broken, round(sums[2] / copies))
        record = {**scalars, "loss": sums[5] / world()[1], "lr": optimizer.param_groups[0]["lr"], "grad_norm": norm}
        runner.reporter.step(
            self._iter, record, waited, time.perf_counter() - began, sums[3] / copies, sums[4] / copies
        )
        runner.call_hook("after_train_iter", batch_idx=self._iter - 1, data_batch=batches, outputs=record)
        if sums[1]:
            self._stop()

    def _share_normalizers(self, batches, task) -> None:
        """Counts a task divides its losses by, averaged over all ranks and micro-batches of the step.

        So the mean over ranks and micro-batches is the mean over the joined batch, however uneven they are.
        """
        counts = [{k: float(v) for k, v in task.normalizers(batch).items()} for batch in batches]
        names = sorted(counts[0])
        if not names:
            return
        sums = total([sum(c[name] for c in counts) for name in names], self.runner.strategy.device)
        fraction = {name: value / (len(batches) * world()[1]) for name, value in zip(names, sums, strict=True)}
        for batch in batches:
            batch["normalizers"] = fraction

    def _refuse_step(self, finite, loss, norm, ids) -> None:
        self.bad_steps += 1
        self.bad_in_a_row += 1
        if not finite:
            self.runner.logger.warning(
                f"step {self._iter + 1} skipped: loss {loss}, gradient norm {norm}; samples of this rank: {ids}"
            )
        limit = self.runner.settings["guards"]["max_bad_steps"]
        if self.bad_in_a_row >= limit:
            raise TrainingError(f"{limit} steps in a row without a finite loss; last samples of this rank: {ids}")

    def note_broken(self, broken, count: int) -> None:
        """Name broken samples of this rank, and count those of all.

        Raises:
            TrainingError: more than `guards.max_broken`.
        """
        self.broken += count
        for record in broken:
            self.runner.logger.warning(f"broken sample replaced: {record}")
        limit = self.runner.settings["guards"]["max_broken"]
        if self.broken > limit:
            last = str(broken[-1]) if broken else "on another rank"
            raise TrainingError(
                f"{self.broken} broken samples, more than max_broken={limit}; last: {last}. Repair "
                "them (the log names each), or allow more with --cfg-options guards.max_broken=N"
            )

    def _in_flight(self) -> str:
        return f"samples in flight: {self.dataloader.in_flight()}"

    def state(self) -> dict:
        """What of the loop goes into a checkpoint. Called by all ranks."""
        counters = {"bad_steps": self.bad_steps, "bad_in_a_row": self.bad_in_a_row, "broken": self.broken}
        return {"step": self._iter, "position": dict(self.dataloader.state), "counters": counters}

    def restore(self, state: Mapping) -> None:
        self._iter = state["step"]
        self.dataloader.restore(state["position"])
        for name, value in state["counters"].items():
            setattr(self, name, value)


def _tokens(batch: Mapping) -> int:
    packed = getattr(batch.get("layout"), "sample_of_token", None)
    if packed is not None:
        return int((packed >= 0).sum())
    mask = batch.get("attention_mask")
    if torch.is_tensor(mask) and mask.ndim == 2:
        return int(mask.sum())
    ids = batch.get("input_ids")
    return int(ids.numel()) if torch.is_tensor(ids) else 0


def random_states(device: torch.device) -> tuple[dict[str, torch.Tensor], list]:
    """Generator states of all ranks: tensors {"<rank>/<generator>"} and, per rank, the JSON of python's and numpy's."""
    mine = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(device)
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    version, numbers, following = random.getstate()
    numbers_of_rank = {
        "numpy": [kind, keys.tolist(), place, has_gauss, gauss],
        "python": [version, list(numbers), following],
    }
    rank, size = world()
    gathered = [(mine, numbers_of_rank)]
    if size > 1:
        gathered = [None] * size
        dist.all_gather_object(gathered, (mine, numbers_of_rank))
    tensors = {f"{r}/{name}": state for r, (states, _) in enumerate(gathered) for name, state in states.items()}
    return tensors, [numbers for _, numbers in gathered]


def restore_random_states(checkpoint: Checkpoint, device: torch.device) -> bool:
    """Set the generators of this rank; False (and nothing set) when the run had another number of ranks."""
    rank, size = world()
    numbers = checkpoint.state["random"]
    if len(numbers) != size:
        return False
    table = checkpoint.tables["rng"]
    torch.set_rng_state(table[f"{rank}/torch"])
    if device.type == "cuda" and f"{rank}/cuda" in table:
        torch.cuda.set_rng_state(table[f"{rank}/cuda"], device)
    kind, keys, place, has_gauss, gauss = numbers[rank]["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), place, has_gauss, gauss))
    version, state, following = numbers[rank]["python"]
    random.setstate((version, tuple(state), following))
    return True
