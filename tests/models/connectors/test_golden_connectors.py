"""Every recorded connector of Uni-Med: outputs, routing, gradients, and the configurations it could not run."""

import json

import pytest
import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import recording, tensors

from unimed.models.connectors import ConnectorError, build_connector

INDEX = json.loads(recording("uni_med", "connector", "index.json").read_text())
CASES = INDEX["cases"]


@pytest.fixture(scope="module")
def weights():
    return tensors("uni_med", "connector", "weights.safetensors")


@pytest.fixture(scope="module")
def recorded():
    vision = tensors("uni_med", "connector", "inputs.safetensors")["after_ln_vision_no_cls"]
    return tensors("uni_med", "connector", "outputs.safetensors") | {"vision": vision}


def connector_of(case, weights, compat="reference"):
    connector = build_connector(
        {**case["config"], "task_token_c": 16, "compat": compat}, vision_dim=24, language_dim=32
    )
    state = {}
    for name, bank in (
        ("projector", "proj_weights"),
        ("router", "router_weights"),
        ("task_tokens", "task_token_weights"),
    ):
        prefix = f"{case[bank]}."
        state |= {
            f"{name}.{key.removeprefix(prefix)}": value for key, value in weights.items() if key.startswith(prefix)
        }
    assert not connector.load_state_dict(state, strict=False).missing_keys
    return connector


@pytest.mark.parametrize("compute_all", [False, True])
def test_all_cases(weights, recorded, compute_all):
    assert len(CASES) == 284
    routed = 0
    for case in CASES:
        connector = connector_of(case, weights)
        connector.compute_all = compute_all
        with torch.no_grad():
            output = connector(recorded["vision"], case["task"])
        assert_close(output.tokens, recorded[f"{case['id']}.out"], case["id"], LAYER)
        if f"{case['id']}.routing" in recorded:
            routed += 1
            assert_close(output.routing, recorded[f"{case['id']}.routing"], f"routing of {case['id']}", LAYER)
    assert routed > 0


def test_the_default_agrees_wherever_it_accepts_the_configuration(weights, recorded):
    refused = []
    for case in CASES:
        try:
            connector = connector_of(case, weights, compat=None)
        except ConnectorError:
            refused.append(case["id"])
            continue
        with torch.no_grad():
            tokens = connector(recorded["vision"], case["task"]).tokens
        assert_close(tokens, recorded[f"{case['id']}.out"], case["id"], LAYER)
    # Hard routing with 2 or 3 experts for 5 tasks, pooling at rate 2, and an unknown resampler.
    assert refused == ["c0243", "c0250", "c0270", "c0271"]


@pytest.mark.parametrize("case", [case for case in CASES if case.get("grads")], ids=lambda case: case["id"])
def test_gradients(weights, recorded, case):
    connector = connector_of(case, weights)
    output = connector(recorded["vision"], case["task"])
    (output.tokens * recorded[f"{case['id']}.grad_w"]).sum().backward()
    compared = 0
    for name, parameter in connector.named_parameters():
        moe, dense = name.replace("projector.", "moe_layers."), name.replace("projector.", "llm_proj.")
        if moe in case["no_grad_params"]:
            assert parameter.grad is None, name
        else:
            norm = case["grad_norms"].get(moe, case["grad_norms"].get(dense))
            assert parameter.grad.norm().item() == pytest.approx(norm, rel=MODEL), name
            element = next(
                (f"{case['id']}.grad.{n}" for n in (moe, dense) if f"{case['id']}.grad.{n}" in recorded), None
            )
            if element is not None:
                assert_close(parameter.grad, recorded[element], name, MODEL)
                compared += 1
    assert compared >= 2


@pytest.mark.parametrize("compat", [None, "reference"])
@pytest.mark.parametrize("failure", INDEX["reference_errors"], ids=lambda failure: failure["error"][:40])
def test_every_failure_of_the_reference_has_a_named_error(recorded, failure, compat):
    with pytest.raises(ConnectorError):
        connector = build_connector({**failure["config"], "task_token_c": 16, "compat": compat}, 24, 32)
        connector(recorded["vision"], failure["task"])
