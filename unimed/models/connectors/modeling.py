"""Connectors: visual tokens of width Dv -> tokens of the width of a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from unimed.models.connectors.configuration import (
    PROJECTORS,
    SPELLINGS,
    ConnectorConfig,
    ConnectorError,
    projector_depth,
)
from unimed.models.connectors.resample import resample
from unimed.models.connectors.router import Router, load_balancing_loss, routing_weights, z_loss
from unimed.registry import CONNECTORS, RegistryError, did_you_mean, registered


class ConnectorOutput(NamedTuple):
    """`tokens` [B, M, Dl]; `routing` [B, M, E] (rows sum to 1) and `auxiliary_loss` (scalar, weighted), else None."""

    tokens: torch.Tensor
    routing: torch.Tensor | None = None
    auxiliary_loss: torch.Tensor | None = None


def projector(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` linear layers with GELU between; the linear layers have the even numbers 0, 2, 4, ..."""
    layers: list[nn.Module] = [nn.Linear(inputs, outputs)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(outputs, outputs)]
    return nn.Sequential(*layers)


class ConnectorBase(nn.Module):
    """Contract of a connector, registered in `CONNECTORS` and built as `cls(vision_dim, language_dim, **options)`.

    `forward` is all that a connector must have; one that routes by task says so by `needs_task` and lists its `tasks`.
    """

    vision_dim: int
    #: Names of tasks it knows; their order gives the ids.
    tasks: tuple[str, ...] = ()
    #: Experts whose shares of the tokens are recorded while training; 0 where there are none.
    num_experts: int = 0
    #: Whether `forward` must be told the task of every sample.
    needs_task: bool = False
    #: What builds it again, for the configuration of a model; filled by `build_connector`.
    settings: dict

    def num_tokens(self, vision_tokens: int) -> int:
        """Tokens that come out for one image with so many visual tokens."""
        return vision_tokens

    def task_ids(self, names: Sequence[str]) -> torch.Tensor:
        """Names of tasks -> ids [B] for `forward`.

        Raises:
            ConnectorError: a task that it does not know.
        """
        for name in names:
            if name not in self.tasks:
                raise ConnectorError(f"task {name!r} is not known; choose one of: {', '.join(self.tasks)}")
        return torch.tensor([self.tasks.index(name) for name in names], dtype=torch.long)

    def forward(
        self,
        vision: torch.Tensor,
        task: torch.Tensor | Sequence[str] | str | None = None,
        grid: tuple[int, int] | None = None,
    ) -> ConnectorOutput:
        """[B, N, vision_dim] -> tokens [B, M, language_dim]; `grid` are rows and columns of the N tokens."""
        raise NotImplementedError


class Connector(ConnectorBase):
    """Resampler, projector or experts, and router of Uni-Med (arXiv 2409.17508), behind any vision encoder.

    Sparse and hard routing compute an expert only for the tokens that chose it; set `compute_all` to compute all
    experts for all tokens as the released code does (same outputs, E/k times the work).

    Parameters carry the names of the released checkpoints, with `projector.` for `llm_proj.`.
    """

    def __init__(self, config: ConnectorConfig, vision_dim: int, language_dim: int):
        super().__init__()
        self.config = config
        self.vision_dim = vision_dim
        self.tasks, self.num_experts = config.tasks, config.num_experts if config.is_moe else 0
        self.compute_all = False
        width = config.feature_width(vision_dim)
        if config.is_moe:
            self.projector = nn.ModuleList(
                projector(width, language_dim, config.depth) for _ in range(config.num_experts)
            )
        elif config.projector_type == "linear":
            self.projector = nn.Linear(width, language_dim)
        else:
            self.projector = projector(width, language_dim, config.depth)
        self.task_tokens = nn.ParameterDict()
        if config.has_task_tokens:
            for task in config.tasks:
                self.task_tokens[task] = nn.Parameter(torch.empty(1, 1, config.task_token_c).normal_(std=0.02))
        if config.has_router:
            inputs = {
                "router_task_token": config.task_token_c + width,
                "router_token": width,
                "router_task": config.task_token_c,
            }[config.router_method]
            self.router = Router(inputs, config.num_experts)

    @property
    def needs_task(self) -> bool:
        """Whether `forward` must be told the task of every sample."""
        config = self.config
        if not config.is_moe:
            return False
        return config.router_type == "hard" or (config.routes_by_network and "task" in config.router_method)

    def num_tokens(self, vision_tokens: int) -> int:
        """Raises:
        ConnectorError: a number of tokens that cannot be resampled.
        """
        return resample(torch.zeros(1, vision_tokens, 1), self.config).shape[1]

    def forward(
        self,
        vision: torch.Tensor,
        task: torch.Tensor | Sequence[str] | str | None = None,
        grid: tuple[int, int] | None = None,
    ) -> ConnectorOutput:
        """`vision` [B, N, Dv] without class token; `task` [B] ids (or names, or one name for all); tasks may be mixed.

        Raises:
            ConnectorError: wrong width, a number of tokens that cannot be resampled, a missing or unknown task.
        """
        if vision.ndim != 3 or vision.shape[-1] != self.vision_dim:
            raise ConnectorError(f"vision must be [B, N, {self.vision_dim}], got {list(vision.shape)}")
        tokens = resample(vision, self.config, grid)
        if not self.config.is_moe:
            return ConnectorOutput(self.projector(tokens))
        names = self._task_names(task, len(tokens))
        weights, auxiliary = self._route(tokens, names)
        return ConnectorOutput(self._mix(tokens, weights), weights, auxiliary)

    def _task_names(self, task, batch: int) -> list[str] | None:
        tasks = self.config.tasks
        if task is None and not self.needs_task:
            return None
        if task is None:
            raise ConnectorError(f"this connector routes by task: give `task` for every sample, of: {', '.join(tasks)}")
        if isinstance(task, str):
            task = [task] * batch
        ids = (task if isinstance(task, torch.Tensor) else self.task_ids(task)).tolist()
        if len(ids) != batch:
            raise ConnectorError(f"{len(ids)} tasks for {batch} images; give one task per image")
        for index in ids:
            if not 0 <= index < len(tasks):
                raise ConnectorError(f"task id {index} is not known; ids 0 to {len(tasks) - 1} are: {', '.join(tasks)}")
        return [tasks[index] for index in ids]

    def _route(self, tokens, names) -> tuple[torch.Tensor, torch.Tensor | None]:
        config = self.config
        shape = (*tokens.shape[:2], config.num_experts)
        if config.router_type == "constant":
            return tokens.new_full(shape, 1 / config.num_experts), None
        if config.router_type == "hard":
            expert = [config.tasks.index(name) for name in names]
            if max(expert) >= config.num_experts:
                raise ConnectorError(
                    f"hard routing: task {config.tasks[max(expert)]!r} wants expert {max(expert)}, "
                    f"but num_experts is {config.num_experts}"
                )
            weights = tokens.new_zeros(shape)
            weights[torch.arange(len(expert)), :, expert] = 1
            return weights, None
        # Only the tokens of tasks that are in the batch enter the graph: the others keep no gradient, so that an
        # optimiser neither moves nor decays them.
        task = None
        if config.router_method != "router_token":
            task = torch.cat([self.task_tokens[name] for name in names]).to(tokens.dtype)
        if config.router_method == "router_task":
            logits = self.router(task).expand(shape)
        elif config.router_method == "router_token":
            logits = self.router(tokens)
        else:
            logits = self.router(torch.cat([task.expand(-1, tokens.shape[1], -1), tokens], dim=-1))
        weights = routing_weights(logits, config.router_type, config.sparse_topk)
        auxiliary = None
        if config.load_balancing_weight or config.z_loss_weight:
            auxiliary = config.load_balancing_weight * load_balancing_loss(logits, weights)
            auxiliary = auxiliary + config.z_loss_weight * z_loss(logits)
        return weights.to(tokens.dtype), auxiliary

    def _mix(self, tokens, weights) -> torch.Tensor:
        if self.compute_all or self.config.router_type in ("soft", "constant"):
            return sum(weights[..., e, None] * expert(tokens) for e, expert in enumerate(self.projector))
        flat, gates = tokens.flatten(0, 1), weights.flatten(0, 1)
        mixed = None
        for e, expert in enumerate(self.projector):
            rows = gates[:, e].nonzero().squeeze(1)
            # An expert nobody chose still runs on zero rows, so that every rank has a gradient for it.
            part = expert(flat[rows]) * gates[rows, e, None]
            if mixed is None:
                mixed = part.new_zeros(len(flat), part.shape[-1])
            mixed = mixed.index_add(0, rows, part)
        return mixed.unflatten(0, tokens.shape[:2])


@CONNECTORS.register_module("projector")
def build_projector(vision_dim: int, language_dim: int, **values) -> Connector:
    """The connector that `projector_type` names: see `ConnectorConfig` for `values`."""
    return Connector(ConnectorConfig.from_dict(values), vision_dim, language_dim)


@CONNECTORS.register_module("linear")
def build_linear(vision_dim: int, language_dim: int, **values) -> Connector:
    """A linear layer: `projector_type="linear"`, see `ConnectorConfig` for `values`."""
    return build_projector(vision_dim, language_dim, **{**values, "projector_type": "linear"})


@CONNECTORS.register_module("mlpKx_gelu")
def build_mlp(vision_dim: int, language_dim: int, **values) -> Connector:
    """K linear layers with GELU between them, K written out in `type` or `projector_type` ("mlp2x_gelu")."""
    return build_projector(vision_dim, language_dim, **values)


@CONNECTORS.register_module("moe_linear")
def build_linear_experts(vision_dim: int, language_dim: int, **values) -> Connector:
    """Experts of a linear layer and their router: `projector_type="moe_linear"`, see `ConnectorConfig`."""
    return build_projector(vision_dim, language_dim, **{**values, "projector_type": "moe_linear"})


@CONNECTORS.register_module("moe_mlp")
def build_mlp_experts(vision_dim: int, language_dim: int, **values) -> Connector:
    """Experts of two linear layers and their router: `projector_type="moe_mlp"`, see `ConnectorConfig`."""
    return build_projector(vision_dim, language_dim, **{**values, "projector_type": "moe_mlp"})


def named_connector(name: str) -> dict:
    """What `build_connector` takes for a bare name: a projector that keeps all tokens and routes by no task, or a
    registered connector with the values it has by itself."""
    if projector_depth(name):
        return {"projector_type": name, "resample_method": "none", "num_task_tokens": 0}
    return {"type": name}


def _with_type(config: Mapping) -> dict:
    """The same with a registered `type`: `type` and `projector_type` may each name a projector or a connector.

    Raises:
        ConnectorError: they contradict each other, or nothing has that name; all valid ones are listed.
    """
    values = dict(config)
    if values.get("type") == "mlpKx_gelu" and values.get("projector_type"):
        del values["type"]  # the K stands in the other one
    kind, projector = values.pop("type", None), values.get("projector_type")
    if kind is not None and projector_depth(kind):
        if projector not in (None, kind):
            raise ConnectorError(f"type {kind!r} and projector_type {projector!r} contradict each other; give one")
        return {"type": "projector", **values, "projector_type": kind}
    if kind in (None, "projector"):
        if projector is None or projector_depth(projector):
            return {"type": "projector", **values}
        kind = values.pop("projector_type")
    own = [name for name in registered(CONNECTORS) if name not in (*SPELLINGS, "projector")]
    if kind in own:
        return {"type": kind, **values}
    valid = [*PROJECTORS, *own]
    raise ConnectorError(
        f"connector {kind!r} is not known{did_you_mean(kind, [*SPELLINGS, 'mlp2x_gelu', *own]) or ';'} "
        f"give type or projector_type, one of: {', '.join(valid)}"
    )


def build_connector(config: Mapping | ConnectorConfig, vision_dim: int, language_dim: int) -> ConnectorBase:
    """Connector from `vision_dim` to `language_dim` wide tokens.

    Args:
        config: arguments, with the name of a connector or projector as `type` or as `projector_type`.

    Raises:
        ConnectorError: an unknown name or argument; see `ConnectorConfig` for those of "projector".
    """
    if isinstance(config, ConnectorConfig):
        config = config.to_dict()
    values = _with_type(config)
    try:
        connector = CONNECTORS.build(values, vision_dim=vision_dim, language_dim=language_dim)
    except RegistryError as error:
        raise ConnectorError(str(error)) from error
    # Ours is written with all its values: defaults may change, a saved model must not.
    connector.settings = connector.config.to_dict() if isinstance(connector, Connector) else values
    return connector
