"""DeepSpeed's ZeRO stages 1 to 3 (arXiv 1910.02054) as a strategy; checkpoints stay those of the engine.

DeepSpeed expects the same graph on every rank: it reduces gradients in the order they arrive in, and gathers parameters
when a module runs. A rank whose batch has no mask would then add the gradient of one parameter to another's, or wait
forever. So two kinds of parameters are told apart:

- those of the modules a task names in `shard_modules() -> list[nn.Module]`, which run in every forward pass on every
  rank: gradients are reduced while they arrive, and stage 3 keeps only a part of each;
- the rest: gradients are reduced after the backward pass in one fixed order, zeros where there were none, and stage 3
  keeps them whole between the steps (their optimizer state and master weights are split as well).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn

from unimed.engine.strategy import Strategy, world

#: Elements reduced at once.
BUCKET = 50_000_000


class _WithAutocast(nn.Module):
    """The task under the engine's own autocast; DeepSpeed switches off one that is entered outside of it."""

    def __init__(self, task: nn.Module, autocast):
        super().__init__()
        self.task, self._autocast = task, autocast

    def forward(self, batch: Mapping) -> dict[str, torch.Tensor]:
        with self._autocast():
            return dict(self.task(batch))


class ZeroStrategy(Strategy):
    """Optimizer states (zero1), also gradients (zero2), also parameters (zero3) split over the ranks.

    Raises:
        ImportError: DeepSpeed is not installed.
        ValueError: precision "fp16".
    """

    has_shards = False  # DeepSpeed's parts are pieces of flat groups

    def __init__(self, name: str, task: nn.Module, device: torch.device, precision: str):
        if precision == "fp16":
            raise ValueError(f"strategy={name!r} knows precision 'fp32' and 'bf16'; fp16 needs 'ddp' or 'single'")
        self._deepspeed = _import(device)
        self.stage = int(name[-1])
        self.collective = self.stage == 3
        super().__init__(name, task, device, precision)

    def _wrap(self) -> nn.Module:
        return self.task  # DeepSpeed wraps it together with the optimizer

    def prepare(self, optimizer, clip):
        steady = {id(p) for module in self.task.shard_modules() for p in module.parameters()}
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip or 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": False,
                "reduce_bucket_size": BUCKET,
                "stage3_prefetch_bucket_size": 0,
                "stage3_max_reuse_distance": 0,
                "stage3_param_persistence_threshold": 0,
            },
        }
        self.engine, self._zero, _, _ = self._deepspeed.initialize(
            model=_WithAutocast(self.task, super().autocast), optimizer=optimizer, config=config
        )
        self._zero.defaults = optimizer.defaults  # mmengine's wrapper asks for them
        self.module = self.engine
        self._late = self._reduce_late(steady)
        if self.stage == 3:
            self._keep_whole(steady)
        return self._zero

    def _reduce_late(self, steady: set[int]) -> list[tuple[int, nn.Parameter]]:
        """Take the hooks off parameters that need not run everywhere; reduce them after the backward pass."""
        zero = self._zero
        groups = zero.fp16_groups if self.stage == 3 else zero.bit16_groups
        placed = [(number, p) for number, group in enumerate(groups) for p in group if p.requires_grad]
        late = [(number, p) for number, p in placed if id(p) not in steady]
        if self.stage == 1:
            # Stage 1 reduces everything after the backward pass, in order; it only needs the zeros.
            self._before(zero, "reduce_gradients", lambda: _fill(late))
            return late
        hooks = zero._grad_acc_hooks
        if len(hooks) != len(placed):
            raise RuntimeError(f"DeepSpeed {self._deepspeed.__version__} places its hooks in a way not known here")
        for handle, (_, parameter) in zip(hooks, placed, strict=True):
            if id(parameter) not in steady:
                handle.remove()

        def reduce():
            _fill(late)
            if self.stage == 2:
                zero.setup_buckets()
            for number, parameter in late:
                zero.reduce_ready_partitions_and_remove_grads(parameter, *((number,) if self.stage == 2 else ()))

        self._before(zero, "overlapping_partition_gradients_reduce_epilogue", reduce)
        return late

    @staticmethod
    def _before(owner, name: str, action) -> None:
        original = getattr(owner, name)

        def both(*args, **kwargs):
            action()
            return original(*args, **kwargs)

        setattr(owner, name, both)

    def _keep_whole(self, steady: set[int]) -> None:
        """Stage 3: parameters that need not run everywhere are gathered after each step, by all ranks together."""
        self._kept = [p for p in self.task.parameters() if id(p) not in steady]
        for parameter in self._kept:
            parameter.ds_persist = True
        self._gather_kept()
        coordinator = self._zero.parameter_offload.get_param_coordinator()
        from deepspeed.runtime.zero.partitioned_param_coordinator import ZeRoTraceMode

        original = coordinator.reset_step

        def reset_step():
            # The order of modules differs between ranks; a recorded one would be compared, and the run ended.
            original()
            coordinator._PartitionedParameterCoordinator__trace_mode = ZeRoTraceMode.INVALID

        coordinator.reset_step = reset_step

    def _gather_kept(self) -> None:
        """Whole again, after DeepSpeed partitioned every parameter. All ranks call it at the same places."""
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        missing = [p for p in self._kept if p.ds_status is not ZeroParamStatus.AVAILABLE]
        if missing:
            missing[0].all_gather(missing)
        for parameter in self._kept:
            # DeepSpeed releases what no module is using; this one is always in use.
            parameter.ds_active_sub_modules.add(-1)

    def forward(self, batch) -> dict[str, torch.Tensor]:
        return self.module(batch)

    def accumulating(self, last: bool):
        self.engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def finish_gradients(self, optimizer, clip) -> float:
        """The gradient norm over all ranks; inf where a gradient is not finite. DeepSpeed clips within the step."""
        if self.stage == 3:
            from deepspeed.runtime.utils import combine_grad_norm_groups

            norm = combine_grad_norm_groups(self._zero._get_norm_groups())
        else:
            norm = self._zero.scaled_global_norm()
        norm = float(norm)
        return norm if norm >= 0 else float("inf")  # DeepSpeed says -1 for what is not finite

    def step(self, optimizer) -> None:
        self.engine.step()
        if self.stage == 3:
            self._gather_kept()

    def skip(self, optimizer) -> None:
        # An infinite gradient takes DeepSpeed's own way of dropping a step, which clears all its buffers.
        # One element of the first rank is enough; padding, which other ranks hold, would stay infinite for ever.
        if world()[0] == 0:
            next(g for gs in self._zero.averaged_gradients.values() for g in gs or ()).view(-1)[0] = float("inf")
        self.step(optimizer)

    def local_parameters(self) -> dict[str, torch.Tensor]:
        if self.stage < 3:
            return super().local_parameters()
        return {name: p.ds_tensor.detach() for name, p in self.named_parameters().items()}

    def gather(self, name: str, local: torch.Tensor) -> torch.Tensor:
        if self.stage < 3:
            return super().gather(name, local)
        parameter = self.named_parameters()[name]
        parts = [torch.empty_like(local) for _ in range(world()[1])]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape).cpu()

    def scatter(self, name: str, full: torch.Tensor) -> torch.Tensor:
        if self.stage < 3:
            return super().scatter(name, full)
        part = self.named_parameters()[name].ds_tensor.detach()
        start = world()[0] * part.numel()
        mine = full.flatten()[start : start + part.numel()].to(part)
        return torch.cat([mine, mine.new_zeros(part.numel() - mine.numel())])

    @contextlib.contextmanager
    def _gathered(self, parameters: list[nn.Parameter], write: bool = False):
        for parameter in parameters:
            parameter.ds_active_sub_modules.discard(-1)
        with self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None):
            yield
        self._gather_kept()

    def weights(self, which="all"):
        if self.stage < 3:
            return super().weights(which)
        parameters = dict(self.task.named_parameters(remove_duplicate=False))
        chosen = self.named_parameters() if which == "trainable" else None
        table = {}
        for name, tensor in self.task.state_dict().items():
            if chosen is None or name in chosen:
                # One at a time: the model may not fit when whole.
                if name in parameters:
                    with self._gathered([parameters[name]]):
                        table[name] = parameters[name].detach().cpu().clone()
                else:
                    table[name] = tensor.cpu().clone()
        return table

    def load_weights(self, table, strict=True):
        if self.stage < 3:
            missing = super().load_weights(table, strict)
            self._zero.refresh_fp32_params()
            return missing
        own = self.task.state_dict()
        parameters = dict(self.task.named_parameters(remove_duplicate=False))
        shapes = {name: getattr(parameters.get(name), "ds_shape", tensor.shape) for name, tensor in own.items()}
        missing = self._compare(table, shapes, strict)
        with torch.no_grad():
            for name, tensor in table.items():
                if name in parameters:
                    with self._gathered([parameters[name]], write=True):
                        parameters[name].copy_(tensor)
                else:
                    own[name].copy_(tensor)
        self._zero.refresh_fp32_params()
        return missing

    def optimizer_table(self, optimizer):
        from deepspeed.utils import safe_get_full_optimizer_state

        table, states = {}, self._flat_states()
        if states:
            self._link_states()
        for name, parameter in self.named_parameters().items():
            for key, value in states.items():
                if key == "step" or not torch.is_tensor(value) or value.ndim == 0:
                    table[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().clone()
                else:
                    table[f"{name}/{key}"] = safe_get_full_optimizer_state(parameter, key).cpu().clone()
        return table, self.optimizer_groups(optimizer)

    def _flat(self) -> list[torch.Tensor]:
        zero = self._zero
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    def _flat_states(self) -> dict:
        """The state of one flat part, from which the kinds of state and the step are read; {} before the first step."""
        flat = self._flat()
        return dict(self._zero.optimizer.state.get(flat[0], {})) if flat else {}

    def _link_states(self) -> None:
        """Tie parameters to their optimizer state. DeepSpeed does it once, when only the first group has a state."""
        if self.stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def load_optimizer(self, optimizer, table, groups):
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._set_groups(optimizer, groups)
        parameters = self.named_parameters()
        scalars, tensors = {}, set()
        for name, tensor in table.items():
            parameter, key = name.rsplit("/", 1)
            if key == "step" or (tensor.ndim == 0 and parameters[parameter].ndim):
                scalars[key] = tensor.clone()
            else:
                tensors.add(key)
        if table:
            for flat in self._flat():
                state = {key: torch.zeros_like(flat) for key in sorted(tensors)}
                self._zero.optimizer.state[flat] = {k: v.clone() for k, v in scalars.items()} | state
            self._link_states()
        for name, tensor in table.items():
            parameter, key = name.rsplit("/", 1)
            if key not in tensors:
                continue
            if self.stage == 3:
                # The function for full tensors fails where a parameter has fewer elements than there are ranks.
                safe_set_local_optimizer_state(parameters[parameter], self.scatter(parameter, tensor), key)
            else:
                safe_set_full_optimizer_state(parameters[parameter], tensor.to(self.device), key)


def _fill(late: list[tuple[int, nn.Parameter]]) -> None:
    for _, parameter in late:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _import(device: torch.device):
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ImportError(
            "strategy zero1, zero2 or zero3 needs DeepSpeed: `pip install unimed[deepspeed]`; 'fsdp2' needs nothing"
        ) from error
    if device.type == "cpu" and not deepspeed.comm.is_initialized():
        # Else the first start compiles a shared-memory extension for minutes; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    return deepspeed
