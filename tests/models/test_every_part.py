"""Every registered decoder, connector and backbone keeps its contract; each has a small example here."""

import pytest
import torch
from sam2_models import backbone as backbone_config
from small_decoders import DECODER_EXAMPLES

from unimed.models.backbones.base import Backbone
from unimed.models.backbones.vision_language import build_backbone, startable
from unimed.models.connectors import ConnectorBase, build_connector
from unimed.models.grounded.configuration import as_config
from unimed.models.heads.mask import MaskDecoder, build_mask_decoder
from unimed.registry import BACKBONES, CONNECTORS, DECODERS, RegistryError, registered

CONNECTOR_EXAMPLES = {
    "projector": [
        dict(projector_type="mlp2x_gelu", resample_method="none", num_task_tokens=0),
        dict(projector_type="moe_mlp", num_experts=5, router_type="soft", task_token_c=8),
    ],
    "linear": [dict(resample_method="none", num_task_tokens=0)],
    "mlpKx_gelu": [dict(projector_type="mlp3x_gelu", resample_method="none", num_task_tokens=0)],
    "moe_linear": [dict(num_experts=5, router_type="sparse", task_token_c=8)],
    "moe_mlp": [dict(num_experts=5, router_type="hard", resample_method="none")],
}
BACKBONE_EXAMPLES = ("internvl", "llava", "qwen2_vl", "qwen2_5_vl", "unimed_eva_language")


def names(registry):
    return {name for name, one in registered(registry).items() if one.__module__.startswith("unimed.")}


def test_every_part_has_an_example():
    assert names(DECODERS) == set(DECODER_EXAMPLES)
    assert names(CONNECTORS) == set(CONNECTOR_EXAMPLES)
    assert names(BACKBONES) == set(BACKBONE_EXAMPLES)


@pytest.mark.parametrize("name", DECODER_EXAMPLES)
def test_decoders(name):
    torch.manual_seed(0)
    config = DECODER_EXAMPLES[name]()
    decoder = build_mask_decoder(config).train()
    assert isinstance(decoder, MaskDecoder) and decoder.config is config
    side = decoder.image_size
    features = decoder.encode(torch.rand(2, 3, side, side))
    assert len(features) == 2 and features.embedding.shape[1] == decoder.embedding_dim
    prompts = torch.randn(4, decoder.prompt_dim, requires_grad=True)
    index = torch.tensor([1, 0, 1, 0])
    output = decoder.decode(features, index, prompts)
    assert output.logits.shape[0] == 4 and output.iou.shape == (4,) and output.object_logits.shape == (4,)
    # Each prompt is answered in its own image, whatever stands around it.
    for row in range(4):
        alone = decoder.decode(features, index[row : row + 1], prompts[row : row + 1])
        torch.testing.assert_close(alone.logits[0], output.logits[row], rtol=1e-3, atol=1e-4)
    assert decoder.decode(features, index[:0], prompts[:0]).logits.shape[0] == 0
    output.logits.sum().backward()
    assert prompts.grad.abs().sum() > 0
    tokens = decoder.decode_tokens(features, index, prompts)
    assert tokens.shape[0] == 4 and tokens.shape[2] == decoder.prompt_dim
    boxes = torch.tensor([[2.0, 3.0, 20.0, 22.0]])
    assert decoder.decode_boxes(features, index[:1], boxes).logits.shape[0] == 1
    again = as_config(config.to_dict())
    assert type(again) is type(config) and isinstance(build_mask_decoder(again), type(decoder))


def test_an_unknown_decoder_is_named():
    from transformers import BertConfig

    with pytest.raises(RegistryError, match="unknown decoder 'bert'"):
        build_mask_decoder(BertConfig())


@pytest.mark.parametrize("name", CONNECTOR_EXAMPLES)
def test_connectors(name):
    for options in CONNECTOR_EXAMPLES[name]:
        torch.manual_seed(0)
        connector = build_connector({"type": name} | options, 8, 12)
        assert isinstance(connector, ConnectorBase)
        vision = torch.randn(2, 16, 8, requires_grad=True)
        task = list(connector.tasks[:2]) if connector.needs_task else None
        output = connector(vision, task)
        assert output.tokens.shape == (2, connector.num_tokens(16), 12)
        output.tokens.sum().backward()
        assert vision.grad.abs().sum() > 0
        again = build_connector(connector.settings, 8, 12)
        again.load_state_dict(connector.state_dict())
        torch.testing.assert_close(again(vision, task).tokens, output.tokens)


@pytest.mark.parametrize("name", BACKBONE_EXAMPLES)
def test_backbones(name, tmp_path):
    torch.manual_seed(0)
    config = backbone_config(name, 60, 50, 0)
    assert config.model_type == name
    adapter = build_backbone(config)
    assert isinstance(adapter, Backbone) and type(adapter) is registered(BACKBONES)[name]
    assert adapter.lm_head.in_features == adapter.hidden_dim and len(adapter.language_model.layers) > 0
    if name not in startable():
        # It is started from parts that name their own processor; an image of its one size goes in.
        side = config.eva["image_size"]
        features = adapter.vision_features(torch.randn(2, 3, side, side))
        assert features.shape == (2, adapter.vision_tokens, adapter.vision_dim)
        with pytest.raises(ValueError, match="needs? a connector|give the model a connector"):
            adapter.image_tokens(torch.randn(2, 3, side, side))
        return
    options = startable()[name].processor_options(config, tmp_path)
    assert options["template"] and options["image_token"]
    if "tile_size" in options:
        pixels = torch.randn(2, 3, options["tile_size"], options["tile_size"])
        assert adapter.image_tokens(pixels).shape == (2, options["tokens_per_tile"], adapter.hidden_dim)
        assert adapter.vision_features(pixels).shape[-1] == adapter.vision_dim
