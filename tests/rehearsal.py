"""A device to rehearse on: tensors tagged `rehearsal` that compute on the CPU and mix with CPU tensors as CUDA's do.

`torch.Generator`, `.numpy()`, `np.asarray`, operations on tensors of two devices, tensors built without `device=` and
generators of the other device fail as they do on a GPU, so that a machine without one finds these mistakes. What it
does not rehearse: kernels, their precision, streams, memory and `pin_memory`.

    rehearsal.start()
    model.to("rehearsal")
"""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import ClassVar

import numpy as np
import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "rehearsal"
_aten = torch.ops.aten
_library: list[torch.library.Library] = []

#: Move values between devices.
_MOVES = {_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default, _aten.set_.source_Tensor}
#: Take indices of either device, as CUDA's do.
_INDEXING = {
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor, _aten._unsafe_index_put.default,
}  # fmt: skip
#: Take a CPU tensor of no dimension beside tensors of the device, as everything pointwise does.
_TAKE_SCALARS = {"where", "masked_fill", "masked_fill_", "lerp", "fill", "fill_", "clamp", "clamp_", "addcmul",
                 "addcdiv", "_foreach_addcdiv_", "_foreach_mul_", "_foreach_add_"}  # fmt: skip
#: Work in the number type of autocast where that is on.
_LOW_PRECISION = [
    _aten.linear.default, _aten.matmul.default, _aten.mm.default, _aten.bmm.default, _aten.addmm.default,
    _aten.baddbmm.default, _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default,
    _aten.conv_transpose2d.input, _aten.scaled_dot_product_attention.default,
]  # fmt: skip
#: Shape their first argument anew in place: the tag around it must follow.
_RESHAPING = {"squeeze_", "unsqueeze_", "t_", "transpose_", "resize_", "set_", "resize_as_"}


_IS_LIST = (list, np.ndarray)


def _is_list(value) -> bool:
    return isinstance(value, _IS_LIST)


class MixedDevices(RuntimeError):
    """Tensors of two devices met."""


class RehearsalTensor(torch.Tensor):
    """A tensor of the device; `held` is the CPU tensor that computes."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    def __repr__(self, **_) -> str:
        return f"{self.held!r} on {NAME}"

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *, force: bool = False):
        if force:
            return self.held.numpy(force=True)
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    # Lists become tensors of the device first: what indexing does with them by itself no Python device is asked about.
    def __getitem__(self, index):
        return super().__getitem__(tree_map_only(_IS_LIST, torch.as_tensor, index, is_leaf=_is_list))

    def __setitem__(self, index, value):
        super().__setitem__(tree_map_only(_IS_LIST, torch.as_tensor, index, is_leaf=_is_list), value)

    def new_tensor(self, data, dtype=None, requires_grad: bool = False):
        made = torch.tensor(data, dtype=dtype or self.dtype, device=self.device)
        return made.requires_grad_(requires_grad)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = RehearsalTensor(self.held.detach().clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True
            copied.grad = None if self.grad is None else copy.deepcopy(self.grad, memo)
            memo[id(self)] = copied
        return memo[id(self)]

    def untyped_storage(self):
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()


class _Generator(torch.Generator):
    """A generator of the device. Operations see the C object alone, so its address tells which these are."""

    made: ClassVar[dict[int, torch.Generator]] = {}

    def __init__(self):
        self.made[self._cdata] = self

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


class OneDevice(TorchDispatchMode):
    """Within it, operations on the CPU refuse generators of the device too."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        generator = (kwargs or {}).get("generator")
        device = torch.device((kwargs or {}).get("device") or "cpu")
        if generator is not None and generator._cdata in _Generator.made and device.type == "cpu":
            if not any(isinstance(one, RehearsalTensor) for one in args):
                raise RuntimeError(f"Expected a 'cpu' device type for generator but found '{NAME}'")
        return operation(*args, **(kwargs or {}))


class _Backend:
    """What `torch.rehearsal` offers of `torch.cuda`."""

    FloatTensor = torch.FloatTensor

    def is_initialized(self) -> bool:
        return True

    is_available = is_initialized

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device=None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device=None) -> None:
        torch.set_rng_state(state)


def start() -> torch.device:
    """Register the device; more than once is once."""
    if not _library:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
        library = torch.library.Library("_", "IMPL")
        library.fallback(_factory, "PrivateUse1")
        _library.append(library)
        library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        library = torch.library.Library("aten", "IMPL")
        for operation in _LOW_PRECISION:
            library.impl(operation, functools.partial(_autocast, operation), "AutocastPrivateUse1")
        for schema in torch._C._jit_get_all_schemas():
            if schema.name.startswith("aten::") and _makes(schema):
                packet = getattr(_aten, schema.name.removeprefix("aten::"))
                operation = getattr(packet, schema.overload_name or "default")
                library.impl(operation, functools.partial(_factory, operation), "PrivateUse1")
        _library.append(library)
        # `Module.to` keeps tied weights tied where a tensor cannot be changed in place into one of another class.
        torch.__future__.set_swap_module_params_on_conversion(True)
        plain = torch.Generator

        class Generators(type(plain)):
            def __instancecheck__(cls, one) -> bool:
                return isinstance(one, plain)

        class Generator(metaclass=Generators):
            def __new__(cls, device="cpu"):
                return _Generator() if torch.device(device).type == NAME else plain(device)

        torch.Generator = Generator
        # `with torch.device(...)` knows what it acts on by identity, and must have seen the functions as they are.
        _device_constructors()
        # They move what they built with operations a Python device is not asked about.
        torch.tensor, torch.as_tensor = _moved(torch.tensor), _moved(torch.as_tensor)
    return torch.device(NAME, 0)


def _moved(build):
    @functools.wraps(build)
    def built(data, *args, device=None, **kwargs):
        if isinstance(data, RehearsalTensor) or device is None or torch.device(device).type != NAME:
            return build(data, *args, **kwargs) if device is None else build(data, *args, device=device, **kwargs)
        numbers = tree_map(lambda value: value.tolist() if isinstance(value, RehearsalTensor) else value, data)
        return build(numbers, *args, **kwargs).to(device)

    return built


def _autocast(operation, *args, **kwargs):
    """The operation in the number type of autocast."""
    dtype = torch.get_autocast_dtype(NAME)

    def lower(value):
        floats = isinstance(value, RehearsalTensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if floats else value

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return operation(*tree_map(lower, args), **tree_map(lower, kwargs))


def _makes(schema) -> bool:
    """Whether an operation makes a tensor out of none."""
    kinds = {argument.name: str(argument.type) for argument in schema.arguments}
    made = [str(one.type) for one in schema.returns] == ["Tensor"]
    return made and "device" in kinds and not any("Tensor" in kind for kind in kinds.values())


def _factory(operation, *args, **kwargs):
    """Operations that make a tensor of the device out of none."""
    return _run(operation, args, kwargs)


def _run(operation, args, kwargs):
    _check(operation, args, kwargs)
    target = kwargs.get("device")
    here = operation not in _MOVES or target is None or torch.device(target).type == NAME
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        raise RuntimeError("only dense CPU tensors can be pinned")
    held = tree_map(_held, (args, kwargs))
    result = operation(*held[0], **held[1])
    if operation is _aten._to_copy.default and result is held[0][0]:
        result = result.clone()
    schema = operation._schema
    name = schema.name.split("::")[1]
    if name in _RESHAPING:
        raise NotImplementedError(f"{name} changes a shape in place, which the rehearsal does not know")
    # What is changed in place, or given for the result, comes back as the tensor that was given.
    changed = {}
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            for one in given if isinstance(given, list | tuple) else [given]:
                if isinstance(one, RehearsalTensor):
                    changed[id(one.held)] = one
                    if one.shape != one.held.shape:
                        raise NotImplementedError(f"{name} gave {tuple(one.held.shape)} to {tuple(one.shape)}")
    if not here:
        return result
    return tree_map(lambda value: changed.get(id(value), value) if id(value) in changed else _tagged(value), result)


def _tagged(value):
    plain = isinstance(value, torch.Tensor) and not isinstance(value, RehearsalTensor)
    return RehearsalTensor(value) if plain else value


def _held(value):
    return value.held if isinstance(value, RehearsalTensor) else value


def _check(operation, args, kwargs) -> None:
    """Raise what CUDA raises where a tensor or a generator of the CPU meets the device."""
    tensors, generators = [], []

    def look(value):
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, torch.Generator):
            generators.append(value)
        return value

    tree_map(look, (args, kwargs))
    for generator in generators:
        if generator._cdata not in _Generator.made:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    strangers = [one for one in tensors if not isinstance(one, RehearsalTensor)]
    if not strangers or operation in _MOVES or len(strangers) == len(tensors):
        return
    name = operation._schema.name.split("::")[1]
    if operation in _INDEXING and isinstance(args[0], RehearsalTensor):
        indices = [one for one in args[1] if isinstance(one, torch.Tensor)]
        strangers = [one for one in strangers if not any(one is index for index in indices)]
    scalars = torch.Tag.pointwise in operation.tags or name in _TAKE_SCALARS or operation in _INDEXING
    into = args[0] if args and isinstance(args[0], torch.Tensor) else None
    if name.endswith("_") and into is not None and not isinstance(into, RehearsalTensor):
        scalars = False
    if scalars and all(one.ndim == 0 for one in strangers):
        return
    raise MixedDevices(f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu in {name}")


@contextlib.contextmanager
def refused(kind: type[BaseException], words: str):
    """The block must raise `kind` saying `words`."""
    try:
        yield
    except kind as error:
        assert words in str(error), f"{words!r} is not in: {error}"
    else:
        raise AssertionError(f"nothing raised {kind.__name__}")
