"""SAM's decoder as the box decoder of uMedGround, at its real size and with tiny recorded weights."""

import json
import re

import pytest
import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import SMALL, recipe, recorded_normal, tensors
from safetensors.torch import load_file, save_file
from transformers import SamModel

from unimed.models.checkpoints import sam
from unimed.models.checkpoints.reading import CheckpointError
from unimed.models.heads.box_heads import build_box_head
from unimed.models.heads.mask import MaskFeatures
from unimed.models.heads.sam import SamMaskHead, output_tokens

GOLDEN = SMALL / "umedground"


@torch.no_grad()
def test_boxes_at_the_published_size():
    shapes = json.loads((GOLDEN / "sam_box_decoder_fullsize_keys.json").read_text())
    recorded = load_file(GOLDEN / "sam_box_decoder_fullsize_outputs.safetensors")
    weights = {}
    for name, shape in shapes.items():
        weights[name] = recipe(f"full.{name}", shape)
    state = sam.convert_state_dict(weights)
    from transformers import SamConfig
    from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPositionalEmbedding

    config = SamConfig(mask_decoder_config=dict(layer_norm_eps=1e-5))
    decoder = SamMaskDecoder(config.mask_decoder_config).eval()
    decoder.config._attn_implementation = "sdpa"
    own = {n.removeprefix("mask_decoder."): t for n, t in state.items() if n.startswith("mask_decoder.")}
    missing, left = decoder.load_state_dict(own, strict=False)
    assert all(name.startswith(("upscale_", "output_hypernetworks_mlps.")) for name in missing)
    assert all(name.startswith("bbox_prediction_head") for name in left)
    code = SamPositionalEmbedding(config.vision_config)
    code.positional_embedding.copy_(state["shared_image_embedding.positional_embedding"])
    steps = (torch.arange(64) + 0.5) / 64
    place = code(torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)).permute(2, 0, 1)[None]
    assert_close(place[..., ::16, ::16], recorded["dense_pe_strided"], "position code", LAYER)
    embedding = recorded_normal("full.in.image_embedding", (1, 256, 64, 64))
    prompts = recorded_normal("full.in.text_embeds", (3, 256))
    dense = state["prompt_encoder.no_mask_embed.weight"].reshape(1, -1, 1, 1).expand_as(embedding)
    tokens = output_tokens(decoder, embedding, place, prompts[:, None], dense, 0)
    head = build_box_head("mhp", 256, tokens=True)
    layers = {f"layers.{2 * i}.{n}": own[f"bbox_prediction_head.layers.{i}.{n}"] for i in range(3) for n in ("weight", "bias")}  # fmt: skip # noqa: E501
    head.load_state_dict(layers)
    boxes = head(tokens).hypotheses
    worst = max(assert_close(boxes[:, k], recorded[f"box_hyp{k}"], f"boxes {k}", MODEL) for k in range(3))
    # The trap: transformers' default moves the boxes visibly.
    for layer in decoder.transformer.layers:
        for norm in (layer.layer_norm1, layer.layer_norm2, layer.layer_norm3, layer.layer_norm4):
            norm.eps = 1e-6
    moved = head(output_tokens(decoder, embedding, place, prompts[:, None], dense, 0)).hypotheses
    assert float((moved - boxes).abs().max()) > worst


def test_the_whole_tiny_sam_with_gradients():
    recorded = tensors("umedground", "sam_box_decoder_tiny.safetensors")
    weights = {name[3:]: value for name, value in recorded.items() if name.startswith("sd.")}
    config = sam.config_of(weights)
    assert config.vision_config.global_attn_indexes == [1] and config.vision_config.window_size == 5
    config.predicts_masks = False
    head = SamMaskHead(config).eval()
    left = head.sam.load_state_dict(sam.convert_state_dict(weights), strict=False)
    assert not left.missing_keys
    assert all("bbox_prediction_head" in name for name in left.unexpected_keys)
    features = head.encode(recorded_normal("in.pixels", (1, 3, 256, 256)))
    assert_close(features.embedding, recorded["image_embedding"], "image embedding", MODEL)
    assert_close(head.sam.get_image_wide_positional_embeddings(), recorded["dense_pe"], "position code", LAYER)
    embedding = features.embedding.detach().requires_grad_()
    prompts = recorded["text_embeds"].clone().requires_grad_()
    tokens = head.decode_tokens(MaskFeatures(embedding), torch.zeros(2, dtype=torch.long), prompts)
    assert_close(tokens, recorded["hs"][:, :5], "tokens", MODEL)
    boxes = build_box_head("mhp", 64, tokens=True)
    prefix = "mask_decoder.bbox_prediction_head.layers."
    boxes.load_state_dict(
        {
            f"layers.{2 * int(name[len(prefix)])}{name[len(prefix) + 1 :]}": tensor
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
    )
    prediction = boxes(tokens)
    for index in range(3):
        assert_close(prediction.hypotheses[:, index], recorded[f"box_hyp{index}"], f"boxes {index}", MODEL)
    for phrase in range(2):
        assert_close(prediction.boxes_cxcywh[phrase], recorded[f"per_phrase{phrase}.mean"], "mean", MODEL)
        assert_close(prediction.hypotheses[phrase].var(0), recorded[f"per_phrase{phrase}.var"], "variance", 10 * MODEL)
    h0, h1, h2 = prediction.hypotheses.unbind(1)
    scalar = (h0 * torch.tensor([1.0, 2, 3, 4])).sum() + h1.square().sum() - h2.sum()
    scalar.backward()
    assert_close(scalar, recorded["scalar"], "sum", MODEL)
    assert_close(prompts.grad, recorded["grad_text_embeds"], "gradient of the prompts", MODEL)
    assert_close(embedding.grad, recorded["grad_image_embedding"], "gradient of the image embedding", MODEL)
    with pytest.raises(ValueError, match="draw masks"):
        head.decode(features, torch.zeros(1, dtype=torch.long), prompts[:1].detach())


def test_encoder_adapters_fold_into_qkv():
    recorded = load_file(GOLDEN / "sam_lora_qkv.safetensors")
    wrapped = {
        "image_encoder.blocks.0.attn.qkv." + name.removeprefix("sd."): value
        for name, value in recorded.items()
        if name.startswith("sd.")
    }
    folded = sam.fold_encoder_lora(wrapped)
    assert sorted(folded) == ["image_encoder.blocks.0.attn.qkv.bias", "image_encoder.blocks.0.attn.qkv.weight"]
    weight, bias = (folded[f"image_encoder.blocks.0.attn.qkv.{name}"] for name in ("weight", "bias"))
    ours = torch.nn.functional.linear(recorded["x"], weight, bias)
    assert_close(ours, recorded["qkv_out"], "queries, keys and values", LAYER)


OFFICIAL = [
    (r"^vision_encoder\.", "image_encoder."),
    (r"^(image_encoder)\.patch_embed\.projection\.", r"\1.patch_embed.proj."),
    (r"^(image_encoder)\.layers\.(\d+)\.layer_norm([12])\.", r"\1.blocks.\2.norm\3."),
    (r"^(image_encoder)\.layers\.", r"\1.blocks."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"transformer\.layers\.(\d+)\.layer_norm([1-4])\.", r"transformer.layers.\1.norm\2."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"\.proj_in\.", ".layers.0."),
    (r"\.(iou_prediction_head|output_hypernetworks_mlps\.\d)\.layers\.0\.", r".\1.layers.1."),
    (r"\.proj_out\.", ".layers.2."),
]


def official_names(state):
    """Names of the official file for a `SamModel` state dict; the inverse of the rules, written apart from them."""
    out = {}
    for name, tensor in state.items():
        if name.endswith("shared_embedding.positional_embedding"):
            continue
        if name == "shared_image_embedding.positional_embedding":
            out["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = tensor
            continue
        first = ".proj_in." in name
        for pattern, replacement in OFFICIAL:
            if first and "iou_prediction_head|" in pattern:
                continue
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def tiny_sam_config():
    from transformers import SamConfig

    return SamConfig(
        vision_config=dict(
            hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
            mlp_dim=64, window_size=3, global_attn_indexes=[1], num_pos_feats=16,
        ),
        prompt_encoder_config=dict(hidden_size=32, image_size=64, patch_size=8, mask_input_channels=4),
        mask_decoder_config=dict(hidden_size=32, mlp_dim=48, iou_head_hidden_dim=24, layer_norm_eps=1e-5),
    )  # fmt: skip


def test_a_file_of_any_size_converts_and_gives_the_same_masks(tmp_path):
    torch.manual_seed(0)
    model = SamModel(tiny_sam_config()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(official_names(model.state_dict()), tmp_path / "medsam_vit_t.pth")
    assert sam.recognises(tmp_path / "medsam_vit_t.pth") and not sam.recognises(tmp_path)
    report = sam.convert(tmp_path / "medsam_vit_t.pth", tmp_path / "out")
    assert not report.missing and not report.unexpected
    again = SamModel.from_pretrained(tmp_path / "out").eval()
    assert again.config.mask_decoder_config.layer_norm_eps == 1e-5
    pixels, box = torch.randn(1, 3, 64, 64), torch.tensor([[[5.0, 5, 40, 50]]])
    with torch.no_grad():
        ours, theirs = (m(pixel_values=pixels, input_boxes=box).pred_masks for m in (again, model))
    torch.testing.assert_close(ours, theirs)
    broken = official_names(model.state_dict())
    del broken["mask_decoder.iou_token.weight"], broken["image_encoder.neck.0.weight"]
    broken["mask_decoder.iou_token.weight"] = torch.zeros(1, 32)
    save_file(broken, tmp_path / "sam_vit_t.safetensors")
    with pytest.raises(CheckpointError, match="vision_encoder.neck.conv1.weight"):
        sam.convert(tmp_path / "sam_vit_t.safetensors", tmp_path / "none")
    with pytest.raises(CheckpointError, match="no SAM image encoder"):
        sam.config_of({"x": torch.zeros(1)})
