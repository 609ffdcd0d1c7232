"""Distributed strategies by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from unimed.engine.strategy import FullyShardedStrategy, Strategy, world
from unimed.engine.tensor_parallel import TensorParallelStrategy


def build_strategy(name: str, task: nn.Module, device: torch.device, precision: str) -> Strategy:
    """The strategy a config names; "auto" is DDP with several processes, else single.

    Raises:
        ValueError: a name that does not fit the number of processes or the precision.
        ImportError: "zero1" to "zero3" without DeepSpeed.
    """
    size = world()[1]
    if name == "auto":
        name = "ddp" if size > 1 else "single"
    if name == "single" and size > 1:
        raise ValueError(f"strategy='single' with {size} processes would train {size} separate models; use 'ddp'")
    if name != "single" and not dist.is_initialized():
        raise ValueError(f"strategy={name!r} needs several processes; start with `bash tools/dist.sh train CONFIG 2`")
    if name.startswith("zero"):
        from unimed.engine.zero import ZeroStrategy

        return ZeroStrategy(name, task, device, precision)
    if name == "tp":
        return TensorParallelStrategy(name, task, device, precision)
    return (FullyShardedStrategy if name == "fsdp2" else Strategy)(name, task, device, precision)
