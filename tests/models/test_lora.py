"""Every option of peft's `LoraConfig`: equal logits before merging, after it, and after export and load; or refused."""

import dataclasses

import pytest
import torch
from closeness import MODEL, assert_close
from peft import LoraConfig
from small_models import tiny_model
from transformers import AutoConfig

import unimed
from unimed.models.lora import REFUSED, add_lora, merge_lora
from unimed.models.starting.grounded_small import build_tiny

IDS = torch.arange(30, 42)[None]
BOTH = ["q_proj", "v_proj"]
#: Option -> settings that are tried together with rank 4.
TAKEN = {
    "r": [dict(r=1), dict(r=8)],
    "lora_alpha": [dict(lora_alpha=7)],
    "lora_dropout": [dict(lora_dropout=0.5)],
    "target_modules": [
        dict(target_modules=BOTH),
        dict(target_modules=["q_proj", "embed_tokens"]),
        dict(target_modules=r".*self_attn\.(k|o)_proj"),
        dict(target_modules="all-linear"),
    ],
    "exclude_modules": [dict(exclude_modules=["down_proj"])],
    "fan_in_fan_out": [dict(fan_in_fan_out=False)],
    "bias": [dict(bias="all"), dict(bias="lora_only")],
    "use_rslora": [dict(use_rslora=True)],
    "modules_to_save": [
        dict(modules_to_save=["embed_tokens"]),
        dict(modules_to_save=["norm", "mlp"], target_modules=BOTH),
        dict(modules_to_save=["embed_tokens"], use_dora=True, bias="all"),
    ],
    "init_lora_weights": [dict(init_lora_weights=way) for way in (False, "gaussian", "olora", "pissa", "orthogonal")],
    "layers_to_transform": [dict(layers_to_transform=[0], layers_pattern="layers")],
    "layers_pattern": [dict(layers_to_transform=1, layers_pattern="layers")],
    "rank_pattern": [dict(rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 6})],
    "alpha_pattern": [dict(alpha_pattern={"v_proj": 3}, rank_pattern={"v_proj": 2})],
    "trainable_token_indices": [
        dict(trainable_token_indices=[3, 4, 31]),
        dict(trainable_token_indices={"embed_tokens": [30]}, use_dora=True),
    ],
    "use_dora": [dict(use_dora=True), dict(use_dora=True, use_rslora=True, rank_pattern={"k_proj": 2})],
    "lora_bias": [dict(lora_bias=True, target_modules=BOTH)],
}
#: Options that say nothing about the numbers.
SILENT = {"task_type", "peft_type", "peft_version", "megatron_core", "qalora_group_size", "runtime_config"}
CASES = [pytest.param(one, id="-".join(map(str, one.items()))[:60]) for many in TAKEN.values() for one in many]


def trained(model, options):
    add_lora(model.language_model, {"r": 4} | options)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def compare(model, folder):
    before = model(input_ids=IDS).logits
    merge_lora(model)
    merged = model(input_ids=IDS).logits
    model.save_pretrained(folder)
    loaded = unimed.load(folder, device="cpu")(input_ids=IDS).logits
    assert_close(merged, before, "merged", MODEL)
    assert torch.equal(merged, loaded)
    assert not [name for name in model.state_dict() if "lora" in name or "original_module" in name]


def test_every_option_of_peft_is_tried_or_refused():
    names = {field.name for field in dataclasses.fields(LoraConfig)}
    assert names - set(TAKEN) - set(REFUSED) - SILENT == set(), "a new option of peft: try it or refuse it"
    assert not set(TAKEN) & set(REFUSED)


@pytest.mark.parametrize("options", CASES)
def test_what_was_learnt_is_what_is_exported(options, tmp_path):
    model = trained(build_tiny(["Segment the liver. <p> liver </p> [SEG]."]), options)
    learning = [name for name, p in model.language_model.named_parameters() if p.requires_grad]
    assert learning
    compare(model, tmp_path / "export")


@pytest.mark.parametrize(
    "options",
    [
        dict(target_modules=BOTH),
        dict(target_modules=["q_proj", "embed_tokens"]),
        dict(modules_to_save=["embed_tokens"], target_modules=BOTH),
        dict(trainable_token_indices=[31, 33]),
    ],
)
def test_tied_embeddings_and_head_part_where_one_of_them_learns(options, tmp_path):
    model = tied_model()
    names = {name for name in model.state_dict() if name.endswith(("lm_head.weight", "embed_tokens.weight"))}
    head, table = model.lm_head.weight, model.get_input_embeddings().weight
    assert head is table and len(names) == 2
    compare(trained(model, options), tmp_path / "export")
    config = AutoConfig.from_pretrained(tmp_path / "export")
    assert config.backbone_config.tie_word_embeddings == (options == dict(target_modules=BOTH))


def tied_model():
    model = tiny_model()
    model.config.backbone_config.tie_word_embeddings = True
    tied = type(model)(model.config).eval()
    tied.processor = model.processor
    return tied


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_merged_is_refused_before_anything_changes(name):
    model = build_tiny(["a"])
    with pytest.raises(ValueError, match=name):
        add_lora(model.language_model, {"r": 4, name: {"any": "thing"}})
    assert all(parameter.requires_grad for parameter in model.language_model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rang=4), "no option 'rang'"),
        (dict(use_dorra=True), "did you mean 'use_dora'"),
        (dict(init_lora_weights="eva"), "init_lora_weights='eva'"),
        (dict(target_modules=["q_proj", "q_porj"]), "target_modules: no module is called 'q_porj'"),
        (dict(target_modules=["lm_head"]), "task.learn"),
        (dict(modules_to_save=["lm_head"]), "modules_to_save: .*task.learn"),
        (dict(modules_to_save=["nothing"]), "modules_to_save: no module is called 'nothing'"),
        (dict(trainable_token_indices=[10**6]), "there is no 1000000"),
        (dict(lora_bias=True, target_modules=["o_proj"]), "o_proj has no bias"),
        (dict(use_dora=True, quantize="nf4"), "use_dora and quantize"),
    ],
)
def test_slips_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        add_lora(build_tiny(["a"]).language_model, options)
