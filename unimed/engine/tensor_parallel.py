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
        ValueError: no language model with a plan, heads that cannot be shared out, or precision "fp16".
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
        split = _with_adapters(model, {name: word for name, word in plan.items() if word in styles})
        parallelize_module(model, mesh, {name: styles[word]() for name, word in split.items()})
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
            return module, dict(plan)
    raise ValueError("strategy='tp': the task has no language model whose family has a plan in transformers")


def _with_adapters(model: nn.Module, plan: dict[str, str]) -> dict[str, str]:
    """A plan in which the matrices of LoRA are split as those they stand beside.

    Of a matrix that is split by its outputs the second of the adapter is, of one that is split by its inputs the first;
    the other one has the small rank on its split side and is held whole.

    Raises:
        ValueError: adapters that need the whole matrix (DoRA), or a quantised one.
    """
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        word = plan.get(_pattern(name))
        if word is None:
            continue
        if not hasattr(module, "base_layer"):
            found[name] = word
            continue
        if type(module.base_layer) is not nn.Linear or getattr(module, "lora_magnitude_vector", None):
            raise ValueError(
                "strategy='tp' splits plain LoRA; leave out task.lora.use_dora and task.lora.quantize, or use 'fsdp2'"
            )
        found[f"{name}.base_layer"] = word
        half = module.lora_B if word == "colwise" else module.lora_A
        found |= {f"{name}.lora_{'B' if word == 'colwise' else 'A'}.{adapter}": word for adapter in half}
    return found


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
