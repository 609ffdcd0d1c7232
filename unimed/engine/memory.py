"""Memory of a training step without taking it: every allocation of a step is counted, hardly one is made.

Parameters, and all that is computed from them, have a shape and no content (FakeTensorMode); the batch and what is
computed from it alone are real, because ids, layouts and masks decide what a model does. So the forward and the
backward pass of a task run on a real batch at the size of any model, and what is alive at each moment is known.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_READ = torch.ops.aten._local_scalar_dense.default
_INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


class StepMemory(NamedTuple):
    """Bytes of one step of one process.

    Attributes:
        parameters, trainable: of all parameters and buffers, and of those that learn alone.
        gradients, optimizer: after the backward pass, and after the first step.
        activations: what the forward pass leaves for the backward pass.
        peak: the most at any moment of forward and backward beyond parameters, optimizer states and batch, so
            activations and gradients together.
        peak_gradients: those of them that are gradients of parameters.
        step_peak: the most while the optimizer steps, beyond parameters, gradients and its states.
    """

    parameters: int
    trainable: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    peak_gradients: int
    step_peak: int

    @property
    def working(self) -> int:
        """Activations and what else the backward pass holds at its worst moment, without gradients of parameters."""
        return self.peak - self.peak_gradients

    @property
    def most(self) -> int:
        """Bytes at the worst moment of the second step, when the optimizer has its states."""
        return self.parameters + self.optimizer + max(self.peak, self.gradients + self.step_peak)


class _Allocations(TorchDispatchMode):
    """Counts the bytes of storages that are made within it and still alive."""

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self._seen: dict[int, weakref.ref] = {}
        self.alive = self.peak = self.gradients = self.peak_gradients = 0
        for tensor in known:
            self._note(tensor, counted=False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return result  # questions for a device or a layout
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return result

    def count_gradient(self, parameter: torch.Tensor) -> None:
        """Note that the gradient of a parameter is there."""
        self.gradients += parameter.grad.numel() * parameter.grad.element_size()

    def _note(self, tensor: torch.Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counted else 0
        if key in self._seen:
            return
        self.alive += size
        if self.alive > self.peak:
            self.peak, self.peak_gradients = self.alive, self.gradients

        def gone(_) -> None:
            del self._seen[key]
            self.alive -= size

        self._seen[key] = weakref.ref(storage, gone)


class _ShapesOfParameters(TorchDispatchMode):
    """Within a FakeTensorMode: computes what depends on real tensors alone, and only shapes of everything else."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        if func is _READ and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if tensors and not any(isinstance(t, FakeTensor) for t in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func._schema.name.endswith("_") and type(args[0]) is torch.Tensor:
            return args[0]  # statistics of what was computed, kept outside of the model
        if func.overloadpacket in _INDEXING:
            with unset_fake_temporarily():
                args = (args[0], _places(args[1]), *args[2:])
        result = func(*args, **kwargs)
        if not tensors and any(isinstance(t, torch.Tensor) and not t.is_floating_point() for t in tree_iter(result)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)  # new integers, such as an index
        return result


def _places(indices: Iterable[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Indices of an indexing operation, with masks that are known replaced by the places where they are True."""
    found: list[torch.Tensor | None] = []
    for index in indices:
        mask = index is not None and index.dtype in (torch.bool, torch.uint8) and not isinstance(index, FakeTensor)
        found += index.nonzero().unbind(dim=1) if mask else [index]
    return found


def without_content(module: nn.Module, fake: FakeTensorMode) -> None:
    """Put parameters and floating-point buffers of a module, which may lie on the meta device, on the CPU as shapes."""
    made: dict[int, torch.Tensor] = {}

    def shape_of(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with fake:
                made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return made[id(tensor)]

    for one in module.modules():
        for name, parameter in list(one._parameters.items()):
            if parameter is not None and not isinstance(parameter, FakeTensor):
                learns, known = parameter.requires_grad, made.get(id(parameter))
                made[id(parameter)] = known if known is not None else nn.Parameter(shape_of(parameter), learns)
                one._parameters[name] = made[id(parameter)]
        for name, buffer in list(one._buffers.items()):
            if buffer is None or isinstance(buffer, FakeTensor):
                continue
            if buffer.is_floating_point():
                one._buffers[name] = shape_of(buffer)
            elif buffer.is_meta:
                one._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def step_memory(
    task: nn.Module,
    batch: Mapping[str, Any],
    optimizer: Any,
    dtype: torch.dtype | None = None,
    foreach: bool | None = None,
) -> StepMemory:
    """Memory of a step of `task` on `batch` by one process. The task has no weights afterwards.

    Args:
        task: a `Task` in training mode; its weights are not needed, so that it may lie on the meta device.
        batch: of the collator.
        optimizer: parameters -> the optimizer.
        dtype: of autocast; None without.
        foreach: whether the optimizer steps all parameters at once, as it does on GPUs; None leaves it as it is.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    without_content(task, fake)
    kept = {id(t): t for t in [*task.parameters(), *task.buffers()]}.values()
    learning = [p for p in task.parameters() if p.requires_grad]
    given = [t for t in tree_iter(dict(batch)) if isinstance(t, torch.Tensor)]
    autocast = torch.autocast("cpu", dtype) if dtype is not None else contextlib.nullcontext()
    with fake, _ShapesOfParameters(), _Allocations([*kept, *given]) as step:
        with autocast:
            loss = task(batch)["loss"]
        activations = step.alive
        hooks = [p.register_post_accumulate_grad_hook(step.count_gradient) for p in learning]
        loss.backward()
        del loss
        peak, peak_gradients = step.peak, step.peak_gradients
        for hook in hooks:
            hook.remove()
        for parameter in learning:  # the engine gives a zero gradient to what a batch does not use
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    if _bytes([p.grad for p in learning]) > peak:
        peak = peak_gradients = _bytes([p.grad for p in learning])
    built = optimizer(task.train_parameters())
    for group in built.param_groups:
        if "foreach" in group and foreach is not None:
            group["foreach"] = foreach
    gradients = [p.grad for p in learning]
    with fake, _ShapesOfParameters(), _Allocations([*kept, *gradients]) as step:
        built.step()
    states = [t for state in built.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return StepMemory(
        parameters=_bytes(kept), trainable=_bytes(learning), gradients=_bytes(gradients), optimizer=_bytes(states),
        activations=activations, peak=peak, peak_gradients=peak_gradients, step_peak=max(0, step.peak - _bytes(states)),
    )  # fmt: skip


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
