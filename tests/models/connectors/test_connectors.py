import pytest
import torch
from closeness import LAYER, assert_close

from unimed.models.connectors import (
    ConnectorBase,
    ConnectorConfig,
    ConnectorError,
    RoutingStatistics,
    build_connector,
    draw_routing,
    named_connector,
)
from unimed.models.connectors.router import load_balancing_loss, z_loss
from unimed.registry import CONNECTORS, registered

MOE = dict(projector_type="moe_mlp", num_experts=5, task_token_c=6, router_type="sparse")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("router_type", ["soft", "sparse", "hard", "constant"])
@pytest.mark.parametrize("router_method", ["router_task_token", "router_token", "router_task"])
def test_a_mixed_batch_equals_single_task_batches(router_type, router_method):
    connector = build_connector({**MOE, "router_type": router_type, "router_method": router_method}, 8, 12)
    vision = torch.randn(5, 16, 8)
    tasks = ["cls", "vqa", "caption", "vqa", "refer"]
    mixed = connector(vision, connector.task_ids(tasks)).tokens
    single = torch.cat([connector(vision[i : i + 1], task).tokens for i, task in enumerate(tasks)])
    assert_close(mixed, single, relative=LAYER)


def test_only_chosen_experts_compute_and_all_have_a_gradient():
    connector = build_connector({**MOE, "sparse_topk": 2}, 8, 12)
    rows = []
    for expert in connector.projector:
        expert.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    connector(torch.randn(3, 16, 8), "vqa").tokens.sum().backward()
    assert sum(rows) == 3 * 4 * 2
    assert all(parameter.grad is not None for parameter in connector.projector.parameters())


def test_names_of_choices_are_listed():
    with pytest.raises(ConnectorError, match="mlpKx_gelu"):
        ConnectorConfig(projector_type="mlp0x_gelu")
    with pytest.raises(ConnectorError, match="router_task_token, router_token, router_task"):
        ConnectorConfig(projector_type="moe_mlp", router_method="router")
    with pytest.raises(ConnectorError, match="vqa, refer, identify, caption, cls"):
        build_connector(MOE, 8, 12)(torch.randn(1, 4, 8), "segment")
    with pytest.raises(ConnectorError, match="num_experts"):
        ConnectorConfig.from_dict(dict(num_expert=5))
    with pytest.raises(ConnectorError, match="one task per image"):
        build_connector(MOE, 8, 12)(torch.randn(2, 4, 8), torch.tensor([0]))


def test_both_keys_name_a_connector_and_all_names_are_listed():
    plain = dict(resample_method="none", num_task_tokens=0)
    for name in ("linear", "mlp3x_gelu", "moe_linear", "moe_mlp"):
        routed = dict(router_method="router_token") if "moe" in name else {}
        made = [build_connector({key: name, **plain, **routed}, 8, 12) for key in ("type", "projector_type")]
        assert made[0].settings == made[1].settings and made[0].settings["projector_type"] == name
    assert {"linear", "mlpKx_gelu", "moe_linear", "moe_mlp"} <= set(registered(CONNECTORS))

    @CONNECTORS.register_module("of_a_test")
    class Own(ConnectorBase):
        def __init__(self, vision_dim: int, language_dim: int, tokens: int = 2):
            super().__init__()

    try:
        for key in ("type", "projector_type"):
            assert type(build_connector({key: "of_a_test", "tokens": 3}, 8, 12)) is Own
            names = "linear, mlpKx_gelu .*, moe_linear, moe_mlp, of_a_test"
            with pytest.raises(ConnectorError, match=f"'moe_mpl' is not known; did you mean 'moe_mlp'.*{names}"):
                build_connector({key: "moe_mpl"}, 8, 12)
            with pytest.raises(ConnectorError, match="give type or projector_type, one of: linear"):
                build_connector({key: "mlp0x_gelu"}, 8, 12)
        assert named_connector("of_a_test") == {"type": "of_a_test"}
    finally:
        CONNECTORS.module_dict.pop("of_a_test")
    with pytest.raises(ConnectorError, match="contradict each other; give one"):
        build_connector(dict(type="linear", projector_type="moe_mlp"), 8, 12)


def test_pooling_follows_the_rate_and_the_grid():
    connector = build_connector(dict(projector_type="linear", resample_method="avgpool", resample_rate=16), 8, 12)
    assert connector(torch.randn(1, 64, 8)).tokens.shape == (1, 4, 12)
    assert connector(torch.randn(1, 32, 8), grid=(4, 8)).tokens.shape == (1, 2, 12)
    with pytest.raises(ConnectorError, match="grid"):
        connector(torch.randn(1, 32, 8))


def test_configuration_survives_a_dictionary():
    config = ConnectorConfig(**MOE)
    assert ConnectorConfig.from_dict(config.to_dict()) == config


def test_unused_parameters_are_not_made():
    assert not [
        n for n, _ in build_connector({**MOE, "router_type": "hard"}, 8, 12).named_parameters() if "proj" not in n
    ]


def test_auxiliary_losses():
    uniform = torch.zeros(6, 4)
    assert z_loss(uniform).item() == pytest.approx(torch.tensor(4.0).log().item() ** 2)
    one_hot = torch.eye(4).repeat(2, 1)
    assert load_balancing_loss(50 * one_hot, one_hot).item() == pytest.approx(1.0)  # every expert equally often
    collapsed = torch.eye(4)[[0] * 8]
    assert load_balancing_loss(50 * collapsed, collapsed).item() == pytest.approx(4.0)  # always the same expert
    plain = build_connector(MOE, 8, 12)
    vision = torch.randn(2, 16, 8)
    assert plain(vision, "vqa").auxiliary_loss is None
    weighted = build_connector({**MOE, "load_balancing_weight": 0.1, "z_loss_weight": 0.01}, 8, 12)
    weighted(vision, "vqa").auxiliary_loss.backward()
    assert weighted.router.fc2.weight.grad.abs().sum() > 0


def test_routing_statistics(tmp_path):
    statistics = RoutingStatistics(("vqa", "refer"), 2)
    statistics.update(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]), torch.tensor([0, 0]))
    assert statistics.scalars() == {"routing/vqa/expert_0": 0.75, "routing/vqa/expert_1": 0.25}
    assert draw_routing(statistics.matrix(), statistics.tasks, tmp_path / "routing.png").stat().st_size > 1000
