"""Tensor parallelism as a strategy: all ranks work on the same samples, each with its part of every layer.

The language model's layers are split as transformers says for its family (`base_model_tp_plan`), by torch's
`parallelize_module`; everything else is held whole by every rank and has the same gradient on all of them.
"""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from torch import nn

from unimed.engine.strategy import Strategy, world

#: Word of a plan for parameters that every rank holds whole and uses for its own heads: their gradients add up.
_ADDED_UP = "replicated_with_grad_allreduce"


class TensorParallelStrategy(Strategy):
    """Matrices of the language model split by heads and by hidden units over all ranks ("tp").

    Raises:
        ValueError: no language model with a plan, heads that cannot be shared out, adapters, or precision "fp16".
    """

    collective = True
    #: All ranks read the same samples.
    data_ranks = (0, 1)

    def _wrap(self) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        if self.scaler.is_enabled():
            raise ValueError("strategy='tp' knows precision 'fp32' and 'bf16'")
        mesh = init_device_mesh(self.device.type, (world()[1],))
        for tensor in self.task.state_dict().values():
            dist.broadcast(tensor, 0)
        model, plan = _planned(self.task)
        _check(model, world()[1])
        styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
        parallelize_module(model, mesh, {name: styles[word]() for name, word in plan.items() if word in styles})
        whole = {n for n, word in plan.items() if word == _ADDED_UP}
        found = [m for name, m in model.named_modules() if _pattern(name) in whole]
        self._added_up = {id(p) for module in found for p in module.parameters()}
        return self.task

    def accumulating(self, last: bool):
        return contextlib.nullcontext()

    def finish_gradients(self, optimizer, clip) -> float:
        """Gradients of what every rank holds whole are made equal; the norm is that of the whole model."""
        from torch.distributed.tensor import DTensor

        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group["foreach"] = False  # parts and whole tensors do not go together
        squares = torch.zeros(2, dtype=torch.float64, device=self.device)
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            split = isinstance(p.grad, DTensor)
            if not split:
                dist.all_reduce(p.grad)
                if id(p) not in self._added_up:
                    p.grad.div_(world()[1])
            local = p.grad.to_local() if split else p.grad
            squares[0 if split else 1] += local.double().square().sum()
        dist.all_reduce(squares[:1])
        norm = float(squares.sum().sqrt())
        if clip is not None and norm > clip:
            for p in parameters:
                p.grad.mul_(clip / (norm + 1e-6))
        return norm


def _planned(task: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    for module in task.modules():
        plan = getattr(getattr(module, "config", None), "base_model_tp_plan", None)
        if plan and hasattr(module, "layers"):
            if any("lora_" in name for name, _ in module.named_parameters()):
                raise ValueError("strategy='tp' trains the language model whole; leave out task.lora, or use 'fsdp2'")
            return module, dict(plan)
    raise ValueError("strategy='tp': the task has no language model whose family has a plan in transformers")


def _check(model: nn.Module, ranks: int) -> None:
    config = model.config
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        count = getattr(config, name, None) or ranks
        if count % ranks:
            raise ValueError(
                f"strategy='tp': {name}={count} of the language model cannot be shared out to {ranks} ranks"
            )


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
