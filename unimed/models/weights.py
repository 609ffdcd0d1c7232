"""Weights are whole: what is missing, left over or of another shape is an error that names it, on every way in and out.

No number is drawn in place of a missing tensor, and none stays without memory (torch's "meta" device).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from unimed.files import share
from unimed.models.shim import write_shim
from unimed.pickles import refuse_dangerous

#: Most names of a kind that a message tells.
MOST = 8


#: Attention that is code of the installed libraries; "owner/kernel" would be fetched from a hub and run.
ATTENTION = (None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")


class WeightsError(ValueError):
    """Weights that are not those of the model: tensors missing, left over, of another shape, or without numbers."""


def check_attention(value) -> None:
    """Raises:
    ValueError: not one of `ATTENTION`.
    """
    if not known_attention(value):
        choices = ", ".join(filter(None, ATTENTION))
        raise ValueError(f"attn_implementation={value!r} is not supported; choose one of: {choices}")


def known_attention(value) -> bool:
    """Whether a setting, or those of several parts, are among `ATTENTION`."""
    names = value.values() if isinstance(value, Mapping) else [value]
    return all(name is None or (isinstance(name, str) and name in ATTENTION) for name in names)


def refuse_unless_whole(
    source,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    shapes: Iterable[str] = (),
    remedy: str = "Is the file whole, and of this model? Download, convert or export it again",
) -> None:
    """Raises:
    WeightsError: any of the lists holds something. Up to `MOST` names of each kind are told.

    Args:
        source: file or folder the weights are from.
        shapes: "name: shape instead of shape".
    """
    kinds = {"missing": sorted(missing), "left over": sorted(unexpected), "of another shape": sorted(shapes)}
    told = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
    if told:
        raise WeightsError(f"{source}: tensors are {'; '.join(told)}. {remedy}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], source, untrained: Sequence[str] = ()) -> None:
    """Copy `tensors` into a module; every one has a place, and every place gets one.

    Args:
        untrained: beginnings of names that are meant to keep the numbers they were drawn with, such as
            "seg_projection." when a model is started; `tensors` must not hold them.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; or a part of the module has no memory.
    """
    own = module.state_dict()
    wanted = {name: tensor for name, tensor in own.items() if not name.startswith(tuple(untrained))}
    tied = _same_memory(wanted)
    missing = {name for name in wanted.keys() - tensors.keys() if not tied.get(name, set()) & tensors.keys()}
    refuse_unless_whole(source, missing, tensors.keys() - wanted.keys(), _other_shapes(wanted, tensors))
    empty = any(tensor.is_meta for tensor in own.values())
    module.load_state_dict(dict(tensors), strict=False, assign=empty)
    if empty and isinstance(module, PreTrainedModel):
        _compute_buffers(module)
    refuse_empty(module, source)


def _compute_buffers(model: PreTrainedModel) -> None:
    """Numbers for the buffers that no file holds (places, frequencies) of a model that was built without memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = not tensor.is_meta
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            if (buffer := module._buffers[name]) is not None and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
                module._is_hf_initialized = False
    model.initialize_weights()


def _other_shapes(wanted, given) -> list[str]:
    return [
        f"{name}: {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]


def _same_memory(table: Mapping[str, torch.Tensor]) -> dict[str, set[str]]:
    """Name -> names of the other tensors that are the same memory."""
    groups: dict[tuple, set[str]] = {}
    for name, tensor in table.items():
        if not tensor.is_meta and tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
            groups.setdefault(key, set()).add(name)
    return {name: group - {name} for group in groups.values() if len(group) > 1 for name in group}


def refuse_empty(module: nn.Module, source) -> None:
    """Raises:
    WeightsError: a parameter or buffer has no memory ("meta"): reading it would give what happens to lie there.
    """
    if getattr(module, "hf_device_map", None):
        return  # what is offloaded to disk has no memory on purpose
    tensors = [*module.named_parameters(), *module.named_buffers()]
    refuse_unless_whole(source, [name for name, tensor in tensors if tensor.is_meta], remedy="They hold no numbers")


def load_whole(load, source, *args, called=None, **options):
    """Call a `from_pretrained` and make sure that nothing was made up.

    Args:
        load: bound `from_pretrained`.
        source, args, options: its arguments.
        called: name of the source in messages.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape, or the file cannot be read as plain tensors.
    """
    called = called or source or getattr(options.get("config"), "_name_or_path", "") or "the given tensors"
    with _one_line(called), _quiet():
        model, info = load(source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    shapes = [
        f"{one[0]}: {tuple(one[1])} instead of {tuple(one[2])}" if isinstance(one, tuple) else str(one)
        for one in info["mismatched_keys"]
    ]
    refuse_unless_whole(called, info["missing_keys"], info["unexpected_keys"], shapes)
    refuse_empty(model, called)
    return model


def build_whole(kind, config, tensors: Mapping[str, torch.Tensor], source, dtype=None):
    """A model of `kind` (ours or transformers') that holds `tensors` under its own names, in evaluation mode.

    Args:
        dtype: of the weights; that of torch's default where it is None.

    Raises:
        WeightsError: see `load_whole`.
    """
    options = {} if dtype is None else {"dtype": dtype}
    options |= {"config": config, "state_dict": dict(tensors), "called": source}
    # Ours do the same inside.
    ours = issubclass(kind, WholeWeights)
    return (kind.from_pretrained(None, **options) if ours else load_whole(kind.from_pretrained, None, **options)).eval()


def save_whole(model: PreTrainedModel, folder, save=None, **options) -> None:
    """Call `save_pretrained`; every tensor is in the file afterwards, and files follow the umask.

    Tensors that share memory without being tied are written each: transformers would leave all but one of them out.

    Raises:
        WeightsError: a tensor of the model is not in what was written.
    """
    state = dict(options.pop("state_dict", None) or model.state_dict())
    tied = set(model.all_tied_weights_keys)
    for name, others in _same_memory(state).items():
        if name not in tied and any(other < name and other not in tied for other in others):
            state[name] = state[name].clone()
    wanted = {name: tensor.numel() for name, tensor in state.items() if name not in tied}
    with _quiet():
        (save or model.save_pretrained)(folder, state_dict=state, **options)
    written = {name: math.prod(shape) for name, shape in written_shapes(folder).items()}
    for file in Path(folder).iterdir():
        if file.is_file():
            share(file)
    if written and sum(written.values()) != sum(wanted.values()):
        # transformers may write under older names and undo on loading; numbers must not get lost on the way.
        refuse_unless_whole(folder, wanted.keys() - written.keys(), remedy="They were not written; please report this")


class WholeWeights:
    """Mixin of every `PreTrainedModel` here, before it among the bases: it loads and saves all tensors, or raises."""

    #: Class of the processor that the shim of a saved folder names for `AutoProcessor`.
    shim_processor = None

    def post_init(self):
        """As transformers does; weights that are tied anywhere below are known at the top, which loads them."""
        super().post_init()
        for name, module in self.named_modules():
            if name and isinstance(module, PreTrainedModel):
                tied = getattr(module, "all_tied_weights_keys", None) or {}
                self.all_tied_weights_keys |= {f"{name}.{a}": f"{name}.{b}" for a, b in tied.items()}

    def _adjust_missing_and_unexpected_keys(self, loading_info):
        """Parts list tensors that they can do without; ours can do without none. (Called by transformers.)"""
        kept = set(loading_info.missing_keys)
        super()._adjust_missing_and_unexpected_keys(loading_info)
        loading_info.missing_keys = kept

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As transformers does, and nothing is made up.

        Raises:
            WeightsError: a tensor is missing, left over or of another shape (each is named), the file cannot be read
                as plain tensors, or the folder holds an adapter that was not merged.
            ValueError: `ignore_mismatched_sizes`, which would draw numbers; an attention that is not installed.
        """
        if kwargs.pop("ignore_mismatched_sizes", False):
            raise ValueError("ignore_mismatched_sizes would put random numbers in place of weights; leave it out")
        check_attention(kwargs.get("attn_implementation"))
        path = Path(str(pretrained_model_name_or_path or ""))
        if pretrained_model_name_or_path and (path / "adapter_config.json").is_file():
            raise WeightsError(
                f"{path}: adapter_config.json is there, an adapter of peft that was not merged; merge it "
                "(peft's merge_and_unload, then save_pretrained) and load that folder"
            )
        if pretrained_model_name_or_path and path.is_dir():
            weight_files(path)  # refuses names that lead out of the folder, and hostile files
        info_too = kwargs.pop("output_loading_info", False)
        # Who trusts the folder's own code has come here through it already; no part of the model runs more of it.
        kwargs["trust_remote_code"] = False
        # `called`, the name of the source in messages, goes through.
        model = load_whole(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        if pretrained_model_name_or_path is None:
            model.config._name_or_path = ""  # transformers writes "None", which would be looked for on the hub
        if info_too:
            return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return model

    def push_to_hub(self, repo_id: str, **options) -> str:
        """As transformers does, with the card and the sources of its folder; see `unimed.models.publishing.push`."""
        from unimed.models.publishing import push

        return push(self, repo_id, **options)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers does, every tensor; see `save_whole`. The shim for `trust_remote_code=True` lies beside them.

        The processor is saved by the families, after this.
        """
        # Set where the folder was opened by its shim; transformers would copy our files into the folder.
        type(self.config)._auto_class = type(self)._auto_class = None
        save_whole(self, save_directory, super().save_pretrained, **kwargs)
        write_shim(save_directory, self, self.shim_processor)


def written_shapes(folder) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the safetensors files of a folder, read off their headers."""
    from safetensors import safe_open

    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return found


def refuse_other_numbers(model: nn.Module, again: nn.Module, source) -> None:
    """Raises:
    WeightsError: `again`, read back from `source`, is not bit by bit what `model` holds.
    """
    ours, theirs = model.state_dict(), again.state_dict()
    shapes = _other_shapes(ours, theirs)
    refuse_unless_whole(source, ours.keys() - theirs.keys(), theirs.keys() - ours.keys(), shapes)
    other = [
        name
        for name, tensor in ours.items()
        if not torch.allclose(theirs[name].cpu(), tensor.cpu().to(theirs[name].dtype), rtol=0, atol=0, equal_nan=True)
    ]
    if other:
        raise WeightsError(f"{source}: {len(other)} tensors hold other numbers than the model ({_some(sorted(other))})")


@contextlib.contextmanager
def _one_line(source):
    """Errors of damaged weight files, in one line and without torch's advice to unpickle them after all."""
    import pickle

    from safetensors import SafetensorError

    try:
        yield
    except (pickle.UnpicklingError, EOFError, SafetensorError) as error:
        raise WeightsError(f"{source}: {_cause(error)}") from error
    except (RuntimeError, ValueError, OSError) as error:
        text = str(error)
        if any(word in text for word in ("weights_only", "PytorchStreamReader", "unpickl", "safetensors", "corrupt")):
            raise WeightsError(f"{source}: {_cause(error)}") from error
        raise


def _cause(error: Exception) -> str:
    reason = str(error).splitlines()[0].split(". ")[0][:200] if str(error) else type(error).__name__
    reason = reason.replace("weights_only", "plain")
    return (
        f"the weights cannot be read as plain tensors ({reason}). The file is damaged or holds Python objects, which "
        "are never executed here; download it again"
    )


@contextlib.contextmanager
def _quiet():
    """transformers' own table of what it loaded, the names of all layers that are not split over GPUs, and its bars are
    left out: what is wrong becomes an error here."""
    from transformers.utils import logging as hf_logging

    loggers = [logging.getLogger(f"transformers.{part}") for part in ("modeling_utils", "distributed.tensor_parallel")]
    levels, bars = [logger.level for logger in loggers], hf_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


def weight_files(folder) -> list[str]:
    """`index_files`, whose pickles were looked through where the extra `scan` is installed.

    Raises:
        WeightsError: as there; or a file names dangerous code.
    """
    names = index_files(folder)
    for name in names:
        refuse_dangerous(Path(folder) / name, WeightsError)
    return names


def index_files(folder) -> list[str]:
    """Names of the weight files of a folder, as its index or the usual names say.

    Raises:
        WeightsError: an index that names something else than a file of this folder, or one that is not there.
    """
    folder = Path(folder)
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index_name).is_file():
            try:
                names = sorted(
                    set(json.loads((folder / index_name).read_text(encoding="utf-8"))["weight_map"].values())
                )
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise WeightsError(f"{folder / index_name}: no index of weights ({error})") from error
            for name in names:
                if not isinstance(name, str) or Path(name).name != name:
                    raise WeightsError(f"{folder}: the index names {name!r}, which is not a file of this folder")
                if not (folder / name).is_file():
                    raise WeightsError(f"{folder}: shard {name} is missing; download it again")
            return [*names, index_name]
    return [name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()][:1]
