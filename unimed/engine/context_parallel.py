"""Context parallelism: ranks that read the same samples share the tokens of a sequence and the images of a batch.

From the first to the last decoder layer each rank holds its part of the tokens. For attention, parts of the heads take
the place of parts of the tokens (DeepSpeed-Ulysses, arXiv 2309.14509), so that masks and positions are those of the
whole sequence. Image encoders read a part of the images on each rank. All else is computed by every rank alike.

Exchanges are differentiated as the linear maps they are. The mean of the gradients over ranks, which DDP and FSDP2
take in any case, is then the gradient of one process.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_map

from unimed.engine.strategy import world
from unimed.models.backbones.base import Backbone
from unimed.models.backbones.shared_attention import ATTENTION, KNOWN, attend_by_parts
from unimed.models.heads.mask import MaskDecoder

#: Names of image encoders in transformers.
ENCODERS = {"vision_tower", "visual", "vision_model", "vision_encoder", "image_tower"}
#: Features for inner layers of the image tokens, which are cut as the states are.
_CUT = {"visual_pos_masks", "deepstack_visual_embeds"}

# torch 2.14 gave them other names; the old ones warn there.
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def share_context(task: nn.Module, size: int, device: torch.device) -> tuple[int, int]:
    """Let groups of `size` neighboring ranks share the sequences and images of a task while it trains.

    Returns:
        (number of this group, number of groups): ranks of a group are to read the same samples.

    Raises:
        ValueError: ranks, heads or layers that cannot be shared out, or a task without a language model.
    """
    from torch.distributed.device_mesh import init_device_mesh

    ranks = world()[1]
    if ranks % size:
        raise ValueError(f"context_parallel={size}: {ranks} processes are not groups of {size}; start a multiple of it")
    decoder = _decoder(task)
    _check(decoder, size)
    mesh = init_device_mesh(device.type, (ranks // size, size), mesh_dim_names=("data", "context"))
    _Context(task, decoder, mesh.get_group("context"))
    return mesh.get_local_rank("data"), ranks // size


def _decoder(task: nn.Module) -> nn.Module:
    for module in task.modules():
        if isinstance(module, Backbone):
            return module.language_model
    raise ValueError(f"context_parallel: {type(task).__name__} has no language model; leave it out, ddp serves as well")


def _check(decoder: nn.Module, size: int) -> None:
    """Raises ValueError for a language model whose layers cannot be shared."""
    config = decoder.config
    heads = config.num_attention_heads
    if heads % size:
        fitting = [n for n in range(2, heads + 1) if heads % n == 0]
        raise ValueError(f"context_parallel={size}: {heads} attention heads cannot be shared out; possible: {fitting}")
    if config._attn_implementation not in ("sdpa", ATTENTION):
        raise ValueError(
            f"context_parallel: {config.model_type!r} has attention {config._attn_implementation!r}, and only 'sdpa' "
            "can be shared; leave it out, or use strategy='fsdp2' and gradient_checkpointing=True"
        )
    for layer in decoder.layers:
        attention = getattr(layer, "self_attn", None)
        if not hasattr(attention, "is_causal") or any("Indexer" in type(m).__name__ for m in attention.children()):
            raise ValueError(
                f"context_parallel: layers of {config.model_type!r} ({type(layer).__name__}) do more than attention "
                "between tokens; leave it out, or use strategy='fsdp2' and gradient_checkpointing=True"
            )


class _Gather(torch.autograd.Function):
    """[K, ...] on each of N ranks -> [N * K, ...] on all."""

    @staticmethod
    def forward(ctx, part, group):
        ctx.group, part = group, part.contiguous()
        whole = part.new_empty(dist.get_world_size(group) * part.shape[0], *part.shape[1:])
        _ALL_GATHER(whole, part, group=group)
        return whole

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        part = gradient.new_empty(gradient.shape[0] // dist.get_world_size(ctx.group), *gradient.shape[1:])
        _REDUCE_SCATTER(part, gradient, group=ctx.group)
        return part, None


class _Part(NamedTuple):
    """How many rows of a batch of images each rank of the group was given, and how many of them count."""

    given: list[int]
    sizes: list[int]


class _Context:
    """What the ranks of a group do between the layers of a task; active while the task is in training mode."""

    def __init__(self, task: nn.Module, decoder: nn.Module, group):
        self.task, self.group = task, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._reading: dict[nn.Module, _Part] = {}
        attend_by_parts(decoder, self)
        decoder.register_forward_pre_hook(self._enter, with_kwargs=True)
        decoder.register_forward_hook(self._leave, with_kwargs=True)
        for number, layer in enumerate(decoder.layers):
            layer.register_forward_pre_hook(self._first_layer if number == 0 else self._layer, with_kwargs=True)
        for encoder in _encoders(task):
            encoder.register_forward_pre_hook(self._read_part, with_kwargs=True)
            encoder.register_forward_hook(self._read_whole)

    @property
    def active(self) -> bool:
        return self.task.training

    # -- tokens -----------------------------------------------------------------------------------------------------
    def part(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part along `dim`; parts are of one length, the last ones are filled up with zeros."""
        length = tensor.shape[dim]
        size = -(-length // self.size)
        start, stop = (min(length, place * size) for place in (self.rank, self.rank + 1))
        missing = size - (stop - start)
        part = tensor.narrow(dim, start, stop - start)
        if not missing:
            return part
        shape = list(part.shape)
        shape[dim] = missing
        return torch.cat([part, part.new_zeros(shape)], dim=dim)

    def _enter(self, decoder, args, kwargs):
        if not self.active:
            return None
        if kwargs.get("past_key_values") is not None:
            raise ValueError("context_parallel: nothing can be generated while the task is in training mode")
        own = {name for name, value in kwargs.items() if name not in KNOWN and _holds_tensors(value)}
        if own - _CUT:
            raise ValueError(
                f"context_parallel: {type(decoder).__name__} also reads {sorted(own - _CUT)[0]!r}, which nobody "
                "cuts; leave it out for this family"
            )
        if own:
            # They stand for the image tokens of all rows, one after the other.
            places = kwargs["visual_pos_masks"]
            numbers = places.flatten().cumsum(0).reshape(places.shape) - 1
            mine = self.part(places, 1)
            chosen = self.part(numbers, 1)[mine]
            embeds = [one[chosen.to(one.device)] for one in kwargs["deepstack_visual_embeds"]]
            kwargs = kwargs | {"visual_pos_masks": mine, "deepstack_visual_embeds": embeds}
        return args, kwargs

    def _layer(self, layer, args, kwargs):
        if not self.active:
            return None
        positions = kwargs.get("position_embeddings")
        if positions is None:
            raise ValueError(f"context_parallel: {type(layer).__name__} makes its own positions; leave it out for it")
        kwargs = kwargs | {"position_embeddings": tree_map(lambda one: self.part(one, -2), positions)}
        if torch.is_tensor(kwargs.get("position_ids")):
            kwargs["position_ids"] = self.part(kwargs["position_ids"], -1)
        return args, kwargs

    def _first_layer(self, layer, args, kwargs):
        changed = self._layer(layer, args, kwargs)
        if changed is None:
            return None
        args, kwargs = changed
        if args:
            return (self.part(args[0], 1), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self.part(kwargs["hidden_states"], 1)}

    def _leave(self, decoder, args, kwargs, output):
        if not self.active:
            return None
        given = kwargs.get("inputs_embeds")
        length = (kwargs["input_ids"] if given is None else given).shape[1]
        hidden = output.last_hidden_state.transpose(0, 1)
        output.last_hidden_state = _Gather.apply(hidden, self.group).transpose(0, 1)[:, :length]
        return output

    # -- images -----------------------------------------------------------------------------------------------------
    def _read_part(self, encoder, args, kwargs):
        """An encoder that is given images [T, C, H, W], or patches [P, K] with `grid_thw` [I, 3], reads a part."""
        self._reading.pop(encoder, None)
        tensors = [*args, *(value for value in kwargs.values() if value is not None)]
        tensors = [one for one in tensors if _holds_tensors(one)]
        if not self.active or not tensors:
            return None
        whole = tensors[0]
        if len(tensors) == 1 and torch.is_tensor(whole) and whole.ndim == 4:
            count = -(-len(whole) // self.size)
            rows = torch.arange(self.rank * count, (self.rank + 1) * count).clamp(max=len(whole) - 1)
            given = [whole[rows.to(whole.device)]]
            sizes = [min(count, max(0, len(whole) - place * count)) for place in range(self.size)]
            counts = [count] * self.size
        elif len(tensors) == 2 and whole.ndim == 2 and tensors[1].shape[1:] == (3,):
            grid = tensors[1]
            patches = grid.prod(dim=1).tolist()
            images = shared_out(patches, self.size)
            sizes = [sum(patches[first:last]) for first, last in images]
            images = [(first, last) if first < last else (0, 1) for first, last in images]  # all run the encoder
            counts = [sum(patches[first:last]) for first, last in images]
            first, last = images[self.rank]
            start = sum(patches[:first])
            given = [whole[start : start + counts[self.rank]], grid[first:last]]
        else:
            return None
        self._reading[encoder] = _Part(counts, sizes)
        replaced = {id(old): new for old, new in zip(tensors, given, strict=True)}
        return tuple(replaced.get(id(one), one) for one in args), {
            name: replaced.get(id(value), value) for name, value in kwargs.items()
        }

    def _read_whole(self, encoder, args, output):
        part = self._reading.pop(encoder, None)
        if part is None:
            return None

        def gather(one: Any) -> Any:
            if not torch.is_tensor(one):
                return one
            # Encoders that merge neighbors give fewer rows than there were patches.
            length = torch.tensor([len(one)], device=one.device)
            lengths = length.new_empty(self.size)
            _ALL_GATHER(lengths, length, group=self.group)
            made = lengths.tolist()
            if any(made[0] * here != there * part.given[0] for there, here in zip(made, part.given, strict=True)):
                raise ValueError(
                    f"context_parallel: {type(encoder).__name__} gives features that are not in rows of its patches; "
                    "leave it out for this family"
                )
            sizes = [size * made[0] // part.given[0] for size in part.sizes]
            most = max(made)
            filled = one if len(one) == most else torch.cat([one, one.new_zeros(most - len(one), *one.shape[1:])])
            every = _Gather.apply(filled, self.group).split(most)
            return torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)])

        return tree_map(gather, output)


def shared_out(weights: list[int], ranks: int) -> list[tuple[int, int]]:
    """Runs (first, last) of neighbors, one per rank and of about the same weight; some may be empty."""
    total, sums, cuts = sum(weights), 0, [0]
    for number, weight in enumerate(weights):
        # An image goes to the rank in whose part its middle lies.
        while len(cuts) < ranks and sums + weight / 2 >= total * len(cuts) / ranks:
            cuts.append(number)
        sums += weight
    cuts += [len(weights)] * (ranks + 1 - len(cuts))
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _encoders(task: nn.Module) -> list[nn.Module]:
    """Image encoders of a task that read each image by itself.

    Left out are those whose features are kept (ranks would find different ones), and those with batch norm.
    """
    kept = [m for m in task.modules() if isinstance(m, MaskDecoder) and m.cache is not None]
    skipped = {id(inner) for one in kept for inner in one.modules()}
    found: list[nn.Module] = []
    for name, module in task.named_modules():
        if name.rpartition(".")[2] in ENCODERS and id(module) not in skipped:
            inside = list(module.modules())
            skipped |= {id(inner) for inner in inside}
            if not any(isinstance(inner, nn.modules.batchnorm._BatchNorm) for inner in inside):
                found.append(module)
    return found


def _holds_tensors(value: Any) -> bool:
    return torch.is_tensor(value) or (isinstance(value, list | tuple) and any(map(torch.is_tensor, value)))
