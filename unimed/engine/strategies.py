"""Distributed strategies by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from unimed.engine.strategy import FullyShardedStrategy, Strategy, world
from unimed.engine.tensor_parallel import TensorParallelStrategy

#: Strategies that take the mean of the gradients of all ranks, as `context_parallel` needs.
AVERAGING = ("ddp", "fsdp2")


def build_strategy(
    name: str, task: nn.Module, device: torch.device, precision: str, context_parallel: int = 1
) -> Strategy:
    """The strategy a config names; "auto" is DDP with several processes, else single.

    Args:
        context_parallel: neighboring ranks that share each sample (`unimed.engine.context_parallel`).

    Raises:
        ValueError: a name that does not fit the number of processes or the precision; a model that cannot be shared.
        ImportError: "zero1" to "zero3" without DeepSpeed.
    """
    size = world()[1]
    if name == "auto":
        name = "ddp" if size > 1 else "single"
    if name == "single" and size > 1:
        raise ValueError(f"strategy='single' with {size} processes would train {size} separate models; use 'ddp'")
    if context_parallel > 1 and size == 1:
        raise ValueError(
            f"context_parallel={context_parallel} needs several processes; "
            "start with `bash tools/dist.sh train CONFIG 2`"
        )
    if name != "single" and not dist.is_initialized():
        raise ValueError(f"strategy={name!r} needs several processes; start with `bash tools/dist.sh train CONFIG 2`")
    if context_parallel > 1:
        if name not in AVERAGING:
            raise ValueError(f"context_parallel={context_parallel} does not go with strategy={name!r}; use 'fsdp2'")
        from unimed.engine.context_parallel import share_context

        data_ranks = share_context(task, context_parallel, device)
        strategy = build_strategy(name, task, device, precision)
        strategy.data_ranks = data_ranks
        return strategy
    if name.startswith("zero"):
        from unimed.engine.zero import ZeroStrategy

        return ZeroStrategy(name, task, device, precision)
    if name == "tp":
        return TensorParallelStrategy(name, task, device, precision)
    return (FullyShardedStrategy if name == "fsdp2" else Strategy)(name, task, device, precision)
