"""Configuration of a connector, checked when it is made and not in the middle of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

#: Tasks of Uni-Med that look at an image, in the order hard routing counts them. Text-only "qa" needs no connector.
UNI_MED_TASKS = ("vqa", "refer", "identify", "caption", "cls")
RESAMPLERS = ("none", "projection", "avgpool", "maxpool")
ROUTER_METHODS = ("router_task_token", "router_token", "router_task")
ROUTER_TYPES = ("soft", "sparse", "hard", "constant")
EXPERTS = ("moe_linear", "moe_mlp")
#: Projectors as they are listed; K is a number.
SPELLINGS = ("linear", "mlpKx_gelu", *EXPERTS)
PROJECTORS = ("linear", "mlpKx_gelu (K >= 1)", *EXPERTS)


class ConnectorError(ValueError):
    """A connector that cannot be built, or that was handed tokens or tasks it cannot take."""


def projector_depth(name: str) -> int:
    """Number of linear layers of a dense projector or of one expert; 0 for a name of none."""
    if name in ("linear", "moe_linear"):
        return 1
    if name == "moe_mlp":
        return 2
    match = re.fullmatch(r"mlp([1-9]\d*)x_gelu", str(name))
    return int(match[1]) if match else 0


def _one_of(name: str, value, choices) -> None:
    if value not in choices:
        raise ConnectorError(f"{name} {value!r} is not known; choose one of: {', '.join(choices)}")


@dataclass(frozen=True)
class ConnectorConfig:
    """Names and values are those of the Uni-Med configuration (arXiv 2409.17508), so that a user's file carries over.

    - `projector_type`: "linear", "mlpKx_gelu" (K linear layers), "moe_linear" or "moe_mlp" (`num_experts` of them).
    - `resample_method`, `resample_rate` r: "projection" joins r consecutive tokens (N/r tokens of width r*C),
      "avgpool" and "maxpool" pool squares of sqrt(r) x sqrt(r) tokens, "none" keeps all.
    - `router_method`: what the router sees: the task token, the visual token, or both.
    - `router_type`: "soft" normalised sigmoids, "sparse" softmax over the `sparse_topk` largest logits, "hard" the
      expert with the number of the task, "constant" the mean of all experts.
    - `num_task_tokens` 1 learns one vector of `task_token_c` values per entry of `tasks`; 0 learns none.
    - `load_balancing_weight`, `z_loss_weight`: 0 switches the auxiliary loss off, as the published system has none.
    - `has_moe` is optional and only checked against `projector_type`.

    `compat="reference"` repeats what the released code does: pooling is 2x2 whatever the rate, an unknown resampler
    keeps all tokens, router and task tokens exist although nothing reads them, and hard routing with too few experts
    fails only when a task without expert comes. By default the rate counts, unused parameters are not made, and a
    configuration that cannot serve all its tasks is refused.

    Raises:
        ConnectorError: an unknown name (the valid ones are listed) or values that do not fit together.
    """

    projector_type: str = "mlp2x_gelu"
    num_experts: int = 5
    resample_method: str = "projection"
    resample_rate: int = 4
    router_method: str = "router_task_token"
    router_type: str = "soft"
    sparse_topk: int = 2
    num_task_tokens: int = 1
    task_token_c: int = 768
    tasks: tuple[str, ...] = UNI_MED_TASKS
    load_balancing_weight: float = 0.0
    z_loss_weight: float = 0.0
    has_moe: bool | None = None
    compat: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if self.compat not in (None, "reference"):
            raise ConnectorError(f"compat {self.compat!r} is not known; choose 'reference' or leave it out")
        if self.projector_type not in EXPERTS and not self.depth:
            raise ConnectorError(
                f"projector_type {self.projector_type!r} is not known; choose one of: {', '.join(PROJECTORS)}"
            )
        if self.has_moe is not None and self.has_moe != self.is_moe:
            fitting = "moe_linear or moe_mlp" if self.has_moe else "linear or mlpKx_gelu"
            raise ConnectorError(
                f"has_moe {self.has_moe} does not fit projector_type {self.projector_type!r}; "
                f"use {fitting}, or leave has_moe out"
            )
        if self.resample_rate < 1:
            raise ConnectorError(f"resample_rate must be 1 or more, got {self.resample_rate}")
        if not self.is_reference:
            _one_of("resample_method", self.resample_method, RESAMPLERS)
            if self.is_pooling and math.isqrt(self.resample_rate) ** 2 != self.resample_rate:
                raise ConnectorError(
                    f"resample_rate {self.resample_rate} with {self.resample_method}: pooling takes square windows, "
                    "choose 1, 4, 9 or 16"
                )
        if self.num_task_tokens not in (0, 1):
            raise ConnectorError(f"num_task_tokens must be 0 or 1 (one vector per task), got {self.num_task_tokens}")
        if self.is_moe:
            self._check_router()

    def _check_router(self):
        _one_of("router_method", self.router_method, ROUTER_METHODS)
        _one_of("router_type", self.router_type, ROUTER_TYPES)
        if self.num_experts < 1:
            raise ConnectorError(f"num_experts must be 1 or more, got {self.num_experts}")
        if self.router_type == "sparse" and not 1 <= self.sparse_topk <= self.num_experts:
            raise ConnectorError(
                f"sparse_topk {self.sparse_topk} must lie between 1 and num_experts {self.num_experts}"
            )
        if self.router_type in ("soft", "sparse") and "task" in self.router_method and not self.num_task_tokens:
            raise ConnectorError(
                f"router_method {self.router_method!r} reads task tokens but num_task_tokens is 0; "
                "set num_task_tokens to 1 or use router_token"
            )
        if self.is_reference and self.is_pooling and self.resample_rate != 4 and self.num_task_tokens:
            raise ConnectorError(
                f"resample_rate {self.resample_rate} with {self.resample_method} and task tokens: the reference pools "
                "2x2 whatever the rate; set resample_rate to 4 or leave compat out"
            )
        if self.router_type == "hard" and not self.is_reference and self.num_experts < len(self.tasks):
            raise ConnectorError(
                f"hard routing needs one expert per task: {len(self.tasks)} tasks ({', '.join(self.tasks)}) "
                f"but num_experts is {self.num_experts}"
            )

    @classmethod
    def from_dict(cls, values: Mapping) -> ConnectorConfig:
        """Raises:
        ConnectorError: a key that is not a field, or see the class.
        """
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConnectorError(f"unknown connector keys {unknown}; known are: {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict:
        return {**asdict(self), "tasks": list(self.tasks)}

    @property
    def is_reference(self) -> bool:
        return self.compat == "reference"

    @property
    def is_moe(self) -> bool:
        return self.projector_type in EXPERTS

    @property
    def is_pooling(self) -> bool:
        return self.resample_method in ("avgpool", "maxpool")

    @property
    def depth(self) -> int:
        """Number of linear layers of a dense projector or of one expert; 0 for an unknown name."""
        return projector_depth(self.projector_type)

    @property
    def routes_by_network(self) -> bool:
        """Whether the weights of the experts come from the router network."""
        return self.is_moe and self.router_type in ("soft", "sparse")

    @property
    def has_router(self) -> bool:
        return self.is_moe and (self.is_reference or self.routes_by_network)

    @property
    def has_task_tokens(self) -> bool:
        if not self.num_task_tokens:
            return False
        return self.is_reference or (self.routes_by_network and "task" in self.router_method)

    def feature_width(self, vision_dim: int) -> int:
        """Width of the tokens after resampling."""
        return vision_dim * self.resample_rate if self.resample_method == "projection" else vision_dim
