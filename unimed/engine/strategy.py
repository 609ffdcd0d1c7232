"""Distributed strategies: a step on one or several processes. All save and read the same tensors under the same names.

Every trainable parameter has a gradient after `backward`, a zero one where the batch had nothing for it. So the graph
is the same on every rank whatever its batch holds: nobody waits for a gradient that never comes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from unimed.engine import sharded


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start_processes(device: str, timeout_s: float = 0) -> torch.device:
    """Join the process group the launcher announces (NCCL on GPUs, else gloo) and choose this rank's device.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        timeout_s: how long ranks wait for each other before the exchange fails; 0 for a day.

    Raises:
        ValueError: an unknown device, or a GPU that is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device {device!r} is not known; use auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} was asked for, but torch sees no GPU here; use device='auto' or 'cpu'")
    if device == "cuda":
        device = f"cuda:{local}"
    if device.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(device[5:]) >= count:
            raise ValueError(f"device={device!r}: torch sees {count} GPUs here, numbered from 0")
        torch.cuda.set_device(int(device[5:]))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        # The watchdog ends a rank that waits too long, with a line that says for what; this is only its net.
        limit = datetime.timedelta(seconds=2 * timeout_s or 86400)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=limit)
    return torch.device(device)


def total(values: list[float], device: torch.device) -> list[float]:
    """Sums over all ranks."""
    if not dist.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


class _Touch(torch.autograd.Function):
    """Puts parameters into the graph of a loss with zero gradient."""

    @staticmethod
    def forward(ctx, loss, *parameters):
        ctx.save_for_backward(*parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, *(torch.zeros_like(p) for p in ctx.saved_tensors)


class _Step(nn.Module):
    """The task with every trainable parameter in its graph, as the wrappers of torch.distributed need it."""

    def __init__(self, task: nn.Module):
        super().__init__()
        self.task = task

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        outputs = dict(self.task(batch))
        outputs["loss"] = _Touch.apply(outputs["loss"], *(p for p in self.task.parameters() if p.requires_grad))
        return outputs


class Strategy:
    """One process, or several that hold a full copy each (DDP).

    Args:
        name: "single" or "ddp".
        task: the module; moved to `device`.
        precision: "fp32", "bf16" or "fp16" (autocast; fp16 with loss scaling).
    """

    def __init__(self, name: str, task: nn.Module, device: torch.device, precision: str):
        self.name, self.task, self.device = name, self._placed(task, device), device
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.module = self._wrap()

    #: True where parameters are gathered by all ranks together, so that all must run every batch, also to validate.
    collective = False
    #: (rank, number of ranks) among those that read different samples; None: all do.
    data_ranks: tuple[int, int] | None = None
    #: True where each rank can write and read its own part of a checkpoint.
    has_shards = True

    @staticmethod
    def _placed(task: nn.Module, device: torch.device) -> nn.Module:
        return task.to(device)

    def prepare(self, optimizer: torch.optim.Optimizer, clip: float | None) -> torch.optim.Optimizer:
        """Take over the optimizer before the first step; returns the one to use from now on."""
        return optimizer

    def _wrap(self) -> nn.Module:
        if self.name == "single":
            return self.task
        return nn.parallel.DistributedDataParallel(
            _Step(self.task), device_ids=[self.device.index] if self.device.type == "cuda" else None
        )

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters under the names of the task."""
        return {name: p for name, p in self.task.named_parameters() if p.requires_grad}

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext()

    def forward(self, batch) -> dict[str, torch.Tensor]:
        with self.autocast():
            return self.module(batch)

    def accumulating(self, last: bool):
        """Inside, gradients are not exchanged unless this is the last micro-batch of the step."""
        return contextlib.nullcontext() if last or self.name == "single" else self.module.no_sync()

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def finish_gradients(self, optimizer, clip: float | None) -> float:
        """Unscale, fill missing gradients, clip; returns the gradient norm before clipping."""
        self.scaler.unscale_(optimizer) if self.scaler.is_enabled() else None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        norm = nn.utils.clip_grad_norm_(parameters, clip if clip is not None else float("inf"))
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def step(self, optimizer) -> None:
        """Move the parameters and forget the gradients."""
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def skip(self, optimizer) -> None:
        """Forget the gradients of a step that is not taken."""
        self.scaler.update() if self.scaler.is_enabled() else None
        optimizer.zero_grad(set_to_none=True)

    def local_parameters(self) -> dict[str, torch.Tensor]:
        """What this rank holds of each trainable parameter, for the running average."""
        return {name: p.detach() for name, p in self.named_parameters().items()}

    def gather(self, name: str, local: torch.Tensor) -> torch.Tensor:
        """The full tensor, on the CPU, of one that is held like `local_parameters`. Called by all ranks."""
        return _full(local)

    def scatter(self, name: str, full: torch.Tensor) -> torch.Tensor:
        """Inverse of `gather`: this rank's part."""
        return _like(full, self.named_parameters()[name])

    def shards(self, which: str, optimizer) -> dict[str, dict[str, torch.Tensor]]:
        """{"model": weights, "optimizer": states}: this rank's part of each (DTensor), or what all ranks hold alike."""
        chosen = self.named_parameters() if which == "trainable" else None
        model = {n: t.detach() for n, t in self.task.state_dict().items() if chosen is None or n in chosen}
        return {"model": model, "optimizer": dict(self._states(optimizer))}

    def _states(self, optimizer):
        """("<parameter>/<state>", tensor) of everything that the optimizer keeps."""
        names = {id(p): name for name, p in self.named_parameters().items()}
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                yield f"{names[id(parameter)]}/{key}", value if torch.is_tensor(value) else torch.tensor(value)

    def load_shards(self, folder, optimizer, groups: list[dict], strict: bool = True) -> None:
        """Inverse of `shards`, in place: each rank reads its own part, whatever ranks have written it.

        Raises:
            ValueError: as `load_weights` and `load_optimizer`; a part is missing.
        """
        kept, own, parameters = sharded.describe(folder), self.task.state_dict(), self.named_parameters()
        model = kept.get("model", {})
        self._compare(model, {name: tensor.shape for name, tensor in own.items()}, strict)
        self._set_groups(optimizer, groups)
        tables = {"model": {name: own[name] for name in model}, "optimizer": {}}
        for name, one in kept.get("optimizer", {}).items():
            parameter, key = name.rsplit("/", 1)
            target = parameters[parameter].detach()
            if one.shape == tuple(target.shape) and key != "step":
                value = torch.empty_like(target, dtype=one.dtype)
            else:
                device = "cpu" if key == "step" else self.device
                value = torch.empty(one.shape, dtype=one.dtype, device=device)
            optimizer.state[parameters[parameter]][key] = tables["optimizer"][name] = value
        sharded.read_into(folder, tables)

    def weights(self, which: str = "all") -> dict[str, torch.Tensor]:
        """Full tensors on the CPU under the task's names; "trainable" leaves out the frozen. Called by all ranks."""
        chosen = self.named_parameters() if which == "trainable" else None
        table, seen = {}, {}
        for name, tensor in self.task.state_dict().items():
            if chosen is None or name in chosen:
                full = _full(tensor)
                # Tied weights share memory, which safetensors refuses; the second name gets its own copy.
                place = full.untyped_storage().data_ptr()
                table[name] = full.clone() if place in seen else full
                seen[place] = name
        return table

    def load_weights(self, table: Mapping[str, torch.Tensor], strict: bool = True) -> list[str]:
        """Copy tensors into the task; returns the names that were not given.

        Raises:
            ValueError: a name the task lacks, another shape, or with `strict` a missing name.
        """
        own = self.task.state_dict()
        missing = self._compare(table, {name: tensor.shape for name, tensor in own.items()}, strict)
        with torch.no_grad():
            for name, tensor in table.items():
                own[name].copy_(_like(tensor, own[name]))
        return missing

    def load_trained(self, table: Mapping[str, torch.Tensor], source, untrained: Sequence[str] = ()) -> list[str]:
        """Copy the tensors of a checkpoint into the task; it may leave out what does not learn.

        Args:
            source: where the tensors are from, for messages.
            untrained: beginnings of names that are meant to stay as they were built.

        Returns:
            names that stay as built.

        Raises:
            ValueError: a name the task lacks, another shape, or a parameter that learns is missing.
        """
        try:
            missing = self.load_weights(table, strict=False)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        lacking = [n for n in missing if n in self.named_parameters() and not n.startswith(tuple(untrained))]
        if lacking:
            raise ValueError(
                f"{source}: {len(lacking)} parameters that learn are not in it ({', '.join(lacking[:5])}). Is it of "
                "this config? Parts that shall start untrained are named with load_from=dict(path=..., untrained=[...])"
            )
        return missing

    @staticmethod
    def _compare(table, shapes: Mapping, strict: bool) -> list[str]:
        unknown, missing = sorted(set(table) - set(shapes)), sorted(set(shapes) - set(table))
        if unknown:
            raise ValueError(f"weights hold {len(unknown)} names the task lacks, first {unknown[0]!r}")
        if strict and missing:
            raise ValueError(f"weights lack {len(missing)} names of the task, first {missing[0]!r}")
        for name, tensor in table.items():
            if tuple(tensor.shape) != tuple(shapes[name]):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the task needs {tuple(shapes[name])}")
        return missing

    def optimizer_table(self, optimizer) -> tuple[dict[str, torch.Tensor], list[dict]]:
        """Optimizer state as {"<parameter>/<state>": tensor} and the groups without their parameters."""
        table = {name: _full(value).clone() for name, value in self._states(optimizer)}
        return table, self.optimizer_groups(optimizer)

    @staticmethod
    def optimizer_groups(optimizer) -> list[dict]:
        """The parameter groups without their parameters."""
        return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    @staticmethod
    def _set_groups(optimizer, groups: list[dict]) -> None:
        if len(groups) != len(optimizer.param_groups):
            raise ValueError(
                f"the checkpoint has {len(groups)} parameter groups, the task {len(optimizer.param_groups)}"
            )
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})

    def load_optimizer(self, optimizer, table: Mapping[str, torch.Tensor], groups: list[dict]) -> None:
        """Inverse of `optimizer_table`."""
        self._set_groups(optimizer, groups)
        parameters = self.named_parameters()
        for name, tensor in table.items():
            parameter, key = name.rsplit("/", 1)
            target = parameters[parameter]
            value = tensor if key == "step" else _like(tensor, target)
            optimizer.state[target][key] = value.clone() if key == "step" else value


class FullyShardedStrategy(Strategy):
    """FSDP2: parameters, gradients and optimizer states are split over the ranks.

    A task may name the modules that run in every forward pass in `shard_modules() -> list[nn.Module]`; each becomes a
    unit of its own. Other parameters are gathered together with the whole, so that no rank waits for a part the other
    does not run.
    """

    collective = True

    @staticmethod
    def _placed(task: nn.Module, device: torch.device) -> nn.Module:
        return task  # the whole may not fit: each unit goes to the device when it is split

    def _wrap(self) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        single = [name for name, p in self.task.named_parameters() if p.ndim == 0]
        if single:
            raise ValueError(f"strategy='fsdp2' cannot split {single[0]}, a single number; use 'ddp' or 'zero2'")
        if world()[1] > 1:
            for tensor in self.task.state_dict().values():
                placed = tensor.to(self.device)
                dist.broadcast(placed, 0)
                if placed is not tensor:
                    tensor.copy_(placed)
        mesh = init_device_mesh(self.device.type, (world()[1],))
        step = _Step(self.task)
        for module in self.task.shard_modules():
            fully_shard(module, mesh=mesh)
        fully_shard(step, mesh=mesh, reshard_after_forward=False)
        return step

    def accumulating(self, last: bool):
        self.module.set_requires_gradient_sync(last)
        return contextlib.nullcontext()


def _full(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()


def _like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    target = target.detach()
    tensor = tensor.to(target.device)
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, target.device_mesh, target.placements)
    return tensor.clone()
