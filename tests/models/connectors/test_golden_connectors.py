"""Every recorded connector of Uni-Med: outputs, routing, gradients, and the configurations it could not run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unimed.models.connectors import ConnectorError, build_connector

GOLDEN = Path(__file__).parents[2] / "golden" / "uni_med"
INDEX = json.loads((GOLDEN / "connector_cases.json").read_text())
CASES = INDEX["cases"]


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "connector_weights.safetensors")


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "connector_outputs.safetensors")


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
    assert len(CASES) == 283
    routed = 0
    for case in CASES:
        connector = connector_of(case, weights)
        connector.compute_all = compute_all
        with torch.no_grad():
            output = connector(recorded["vision"], case["task"])
        torch.testing.assert_close(output.tokens[:, ::4], recorded[f"{case['id']}.out"], atol=1e-5, rtol=0)
        if f"{case['id']}.routing" in recorded:
            routed += 1
            torch.testing.assert_close(output.routing[:, ::4], recorded[f"{case['id']}.routing"], atol=1e-5, rtol=0)
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
        torch.testing.assert_close(tokens[:, ::4], recorded[f"{case['id']}.out"], atol=1e-5, rtol=0)
    # Hard routing with 2 or 3 experts for 5 tasks, pooling at rate 2, and an unknown resampler.
    assert refused == ["c0243", "c0250", "c0270", "c0271"]


@pytest.mark.parametrize("case", [case for case in CASES if case.get("grads")], ids=lambda case: case["id"])
def test_gradients(weights, recorded, case):
    connector = connector_of(case, weights)
    output = connector(recorded["vision"], case["task"])
    (output.tokens * recorded[f"{case['id']}.grad_w"]).sum().backward()
    for name, parameter in connector.named_parameters():
        moe, dense = name.replace("projector.", "moe_layers."), name.replace("projector.", "llm_proj.")
        if moe in case["no_grad_params"]:
            assert parameter.grad is None, name
        else:
            norm = case["grad_norms"].get(moe, case["grad_norms"].get(dense))
            assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("compat", [None, "reference"])
@pytest.mark.parametrize("failure", INDEX["reference_errors"], ids=lambda failure: failure["error"][:40])
def test_every_failure_of_the_reference_has_a_named_error(recorded, failure, compat):
    with pytest.raises(ConnectorError):
        connector = build_connector({**failure["config"], "task_token_c": 16, "compat": compat}, 24, 32)
        connector(recorded["vision"], failure["task"])
