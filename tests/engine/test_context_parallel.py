"""Ranks that share the tokens and images of their samples are one process that has them all."""

import json

import pytest
import torch

from unimed.engine import checkpoint
from unimed.engine.context_parallel import _check, _decoder, share_context, shared_out
from unimed.engine.strategies import build_strategy
from unimed.engine.strategy import FullyShardedStrategy
from unimed.models.starting.grounded_small import build_small


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["boxes", "native"])
def test_ranks_train_the_model_of_one(parallel_runs, kind):
    one, shared = (parallel_runs / f"{kind}-{name}" for name in ("one", "context"))
    weights = [checkpoint.load(run / "checkpoints" / "step_00000002").tables["model"] for run in (one, shared)]
    start = checkpoint.load(one / "checkpoints" / "step_00000001").tables["model"]
    assert weights[0].keys() == weights[1].keys()
    largest = max((weights[0][k] - weights[1][k]).abs().max().item() for k in start)
    moved = max((weights[0][k] - start[k]).abs().max().item() for k in start)
    logs = [[json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()] for run in (one, shared)]
    steps = [[row for row in log if row["kind"] == "train"] for log in logs]
    assert len(steps[0]) == len(steps[1]) == 2
    apart = {
        name: max(abs(a[name] - b[name]) / abs(a[name]) for a, b in zip(*steps, strict=True) if a[name])
        for name in ("loss", "grad_norm")
    }
    print(f"{kind}: weights {largest:.1e} apart after 2 steps (moved by up to {moved:.1e}), relative {apart}")
    assert largest < 5e-5 < moved / 10 and max(apart.values()) < 1e-4
    for name in ("box", "dice", "text"):
        assert any(row[name] > 0 for row in steps[1])


def test_what_cannot_be_shared_out_is_named():
    model = build_small(["a disc"], hidden_dim=64, layers=1, heads=4, mask_config=dict(
        model_type="unimed_light", image_size=32, width=16))  # fmt: skip
    decoder = _decoder(model)
    _check(decoder, 2)
    with pytest.raises(ValueError, match=r"4 attention heads cannot be shared out; possible: \[2, 4\]"):
        _check(decoder, 3)
    decoder.config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="has attention 'eager', and only 'sdpa'"):
        _check(decoder, 2)
    decoder.config._attn_implementation = "sdpa"
    decoder.layers[0].self_attn = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="more than attention between tokens"):
        _check(decoder, 2)
    with pytest.raises(ValueError, match="1 processes are not groups of 2"):
        share_context(model, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="needs several processes"):
        build_strategy("auto", model, torch.device("cpu"), "fp32", context_parallel=2)
    with pytest.raises(ValueError, match="no language model"):
        _decoder(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("weights, ranks, cuts", [
    ([4, 4, 4, 4], 2, [(0, 2), (2, 4)]),
    ([9, 1, 1, 1], 2, [(0, 1), (1, 4)]),
    ([5], 3, [(0, 0), (0, 1), (1, 1)]),
    ([1, 1, 8], 2, [(0, 2), (2, 3)]),
])  # fmt: skip
def test_images_are_shared_out_by_their_size(weights, ranks, cuts):
    assert shared_out(weights, ranks) == cuts


def test_fsdp_names_the_number_it_cannot_split():
    task = torch.nn.Linear(2, 2)
    task.scale = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="strategy='fsdp2' cannot split scale, a single number; use 'ddp' or 'zero2'"):
        FullyShardedStrategy("fsdp2", task, torch.device("cpu"), "fp32")
