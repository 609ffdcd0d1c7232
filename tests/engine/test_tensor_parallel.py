"""Two ranks that share the layers of a language model are one process with the whole model."""

import pytest
import torch

from unimed.engine import checkpoint
from unimed.engine.tensor_parallel import _check, _pattern, _planned, _with_adapters
from unimed.models.lora import add_lora
from unimed.models.starting.grounded_small import build_small


@pytest.mark.slow
def test_two_ranks_train_the_model_of_one(parallel_runs):
    one, two, cut = (
        checkpoint.load(parallel_runs / name / "checkpoints" / "step_00000004").tables
        for name in ("one", "tensor", "tensor-cut")
    )
    start = checkpoint.load(parallel_runs / "one" / "checkpoints" / "step_00000002").tables["model"]
    assert one["model"].keys() == two["model"].keys()
    largest = max((one["model"][k] - two["model"][k]).abs().max().item() for k in start)
    moved = max((one["model"][k] - start[k]).abs().max().item() for k in start)
    print(f"largest weight difference after 4 steps {largest:.1e}, where weights moved by up to {moved:.1e}")
    assert largest < 5e-5 < moved / 10
    # Resumed from the whole checkpoint, saved in parts.
    for table in ("model", "optimizer"):
        assert all(torch.equal(two[table][key], cut[table][key]) for key in two[table])


@pytest.mark.slow
def test_adapters_are_split_with_what_they_stand_beside(parallel_runs):
    one, two = (
        checkpoint.load(parallel_runs / f"lora-{name}" / "checkpoints" / "step_00000003").tables["model"]
        for name in ("one", "tensor")
    )
    start = checkpoint.load(parallel_runs / "lora-one" / "checkpoints" / "step_00000001").tables["model"]
    learnt = [name for name in start if "lora_" in name]
    assert one.keys() == two.keys() and any("down_proj.lora_A" in name for name in learnt)
    for kind in ("lora_A", "lora_B"):
        largest = max((one[k] - two[k]).abs().max().item() for k in learnt if kind in k)
        moved = max((one[k] - start[k]).abs().max().item() for k in learnt if kind in k)
        print(f"{kind}: {largest:.1e} apart after 3 steps, where it moved by up to {moved:.1e}")
        assert largest < 5e-5 < moved / 10


def test_what_cannot_be_shared_out_is_named():
    model = build_small(["a disc"], hidden_dim=64, layers=1, heads=4, mask_config=dict(
        model_type="unimed_light", image_size=32, width=16))  # fmt: skip
    language, plan = _planned(model)
    assert plan["layers.*.self_attn.q_proj"] == "colwise" and _pattern("layers.11.mlp") == "layers.*.mlp"
    _check(language, 2)
    with pytest.raises(ValueError, match="num_attention_heads=4 of the language model cannot be shared out to 3"):
        _check(language, 3)
    with pytest.raises(ValueError, match="no language model whose family has a plan"):
        _planned(torch.nn.Linear(2, 2))


def test_adapters_that_need_the_whole_matrix_are_refused():
    model = build_small(["a disc"], hidden_dim=64, layers=1, heads=4, mask_config=dict(
        model_type="unimed_light", image_size=32, width=16))  # fmt: skip
    add_lora(model.language_model, dict(r=2, use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="leave out task.lora.use_dora and task.lora.quantize, or use 'fsdp2'"):
        _with_adapters(*_planned(model))
