"""What the rows of `unimed speed all` are made with: sizes, ways that take turns, and a ratio of medians.

Ways take turns, run after run, so that what else the machine does hits all of them; the median of the ratios counts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sizes:
    """How large the comparisons are; the small ones are for tests."""

    width: int = 576
    layers: int = 30
    shared: int = 300
    answer: int = 24
    tokens: tuple[int, ...] = (8, 16, 32)
    questions: tuple[int, ...] = (1, 2, 4, 8)
    clip_width: int = 256
    clip_layers: int = 4
    images: int = 24
    side: int = 224
    matrix: int = 1024
    mask_encoder: Mapping = field(default_factory=dict)  # of `random_sam2`; SAM 2.1 tiny where it is empty
    train_model: Mapping = field(default_factory=dict)  # of `SmallGroundedMLLM`; the quickstart's where it is empty
    train_batch: int = 16
    train_batches: int = 3
    train_images: int = 12
    volume_side: int = 256
    volume_depth: int = 63


_SMALL_ENCODER = dict(
    embed_dim=16, blocks=[1, 1, 2, 1], heads=1, global_blocks=[3], windows=[8, 4, 4, 4], background=[7, 7],
    hidden_dim=32, image_size=128, memory_layers=1, memory_feed_forward=32, memory_dim=16, decoder_mlp=32,
    iou_hidden=32,
)  # fmt: skip
_SMALL_MODEL = dict(
    hidden_dim=32, layers=1, mask_config=dict(
        model_type="medsam_lite", image_size=32, embed_dims=[16, 16, 16, 16], depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1], hidden_dim=32, decoder_mlp=32, text_width=32,
    ), vision_grid=2,
)  # fmt: skip
SMALL = Sizes(
    32, 2, 12, 4, (2, 6), (1, 3), 32, 1, 4, 32, 128, mask_encoder=_SMALL_ENCODER, train_model=_SMALL_MODEL,
    train_batch=2, train_batches=2, train_images=2, volume_side=64, volume_depth=4,
)  # fmt: skip


def paired(ways: dict[str, Callable], repeat: int, warm: int = 1) -> dict[str, dict[str, list[float]]]:
    """CPU and wall seconds of every way, `repeat` times in turns, after `warm` turns that warm up."""
    spent = {name: {"cpu_s": [], "wall_s": []} for name in ways}
    for turn in range(1 - warm, repeat + 1):
        for name, work in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            if turn > 0:
                spent[name]["cpu_s"].append(time.process_time() - cpu)
                spent[name]["wall_s"].append(time.perf_counter() - wall)
    return spent


def row(what: str, ways: dict[str, Callable], repeat: int, gflop: float = 0.0, peak: float = 0.0) -> dict:
    """A row of the table; the first of the `ways` is ours.

    Args:
        gflop: work of ours, in 10^9 operations. peak: of the machine, in 10^9 operations a second.
    """
    return described(what, paired(ways, repeat), gflop, peak)


def described(what: str, spent: dict[str, dict[str, list[float]]], gflop: float = 0.0, peak: float = 0.0) -> dict:
    """As `row`, of what `paired` measured."""
    ours, *others = spent
    found = {"what": what, "ours_cpu_s": statistics.median(spent[ours]["cpu_s"]),
             "ours_wall_s": statistics.median(spent[ours]["wall_s"])}  # fmt: skip
    for other in others:
        pairs = zip(spent[other]["cpu_s"], spent[ours]["cpu_s"], strict=True)
        ratios = [theirs / max(mine, 1e-9) for theirs, mine in pairs]
        found |= {"other": other, "ratio_cpu": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        found |= dict(zip(("from", "to"), interval_of_median(ratios), strict=False))
    if gflop and peak:
        found["share_of_matrix_peak"] = gflop / found["ours_cpu_s"] / peak
    return found


def interval_of_median(values: list[float]) -> tuple[float, ...]:
    """95 % interval of the median by ranks, whatever the distribution; () of fewer than six values."""
    ordered, count = sorted(values), len(values)
    below, rank = 0.0, -1  # chance that so few values lie below the median
    while (below := below + math.comb(count, rank + 1) / 2**count) <= 0.025:
        rank += 1
    return (ordered[rank], ordered[-1 - rank]) if rank >= 0 else ()


def operations(work: Callable, learns: bool = False) -> float:
    """10^9 operations of matrix products and convolutions in one call of `work`; where it `learns`, backward too."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention as products that the counter knows.
    with torch.set_grad_enabled(learns), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        work()
    return counted.get_total_flops() / 1e9


def seconds_of_products(work: Callable, repeat: int) -> float:
    """CPU seconds that matrix products, convolutions and attention take in one call of `work`; the median."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watched(TorchDispatchMode):
        spent = 0.0

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            began = time.process_time()
            found = operator(*args, **(kwargs or {}))
            name = str(operator)
            if any(word in name for word in ("mm", "convolution", "attention")):
                self.spent += time.process_time() - began
            return found

    every = []
    for _ in range(repeat):
        with torch.no_grad(), Watched() as watched:
            work()
        every.append(watched.spent)
    return statistics.median(every)
