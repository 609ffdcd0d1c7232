"""All recorded connectors, the large ones too, which are not kept in the repository."""

import json

import torch
from golden_files import large
from safetensors.torch import load_file

from unimed.models.connectors import build_connector


def test_every_recorded_case():
    folder = large("uni_med", "connector")
    index = json.loads((folder / "index.json").read_text())
    weights, outputs = load_file(folder / "weights.safetensors"), load_file(folder / "outputs.safetensors")
    vision = load_file(folder / "inputs.safetensors")["after_ln_vision_no_cls"]
    worst = 0.0
    assert len(index["cases"]) == 284
    for case in index["cases"]:
        connector = build_connector({**case["config"], "task_token_c": 16, "compat": "reference"}, 24, 32)
        state = {}
        banks = {"projector": "proj_weights", "router": "router_weights", "task_tokens": "task_token_weights"}
        for name, bank in banks.items():
            prefix = f"{case[bank]}."
            state |= {f"{name}.{k.removeprefix(prefix)}": v for k, v in weights.items() if k.startswith(prefix)}
        assert not connector.load_state_dict(state, strict=False).missing_keys
        with torch.no_grad():
            output = connector(vision, case["task"])
        worst = max(worst, float((output.tokens - outputs[f"{case['id']}.out"]).abs().max()))
        if f"{case['id']}.routing" in outputs:
            worst = max(worst, float((output.routing - outputs[f"{case['id']}.routing"]).abs().max()))
    print("largest difference of 284 cases", worst)
    assert worst < 1e-5
