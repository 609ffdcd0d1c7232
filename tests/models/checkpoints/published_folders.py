"""Folders as UniBiomed, Sa2VA and InternVL publish them, of a size for tests, and their names at full size."""

import json
import re
import shutil
from pathlib import Path

import torch
from golden_files import SMALL, recording, tensors
from safetensors.torch import save_file

from unimed.models.checkpoints import unibiomed
from unimed.models.grounded.modeling import GroundedMLLM

VISION = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
)
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=4096,
)  # fmt: skip
TINY_SAM2 = dict(
    hiera=dict(embed_dim=8, num_heads=1, stages=[1, 1, 2, 1], global_att_blocks=[3],
               window_pos_embed_bkg_spatial_size=[7, 7], window_spec=[8, 4, 4, 4]),
    d_model=64, mem_attn_layers=1, mem_attn_ff=32, mem_dim=64, decoder_mlp=32, iou_hidden=32, image_size=128,
)  # fmt: skip


def recorded_unibiomed(folder):
    """The recorded tiny UniBiomed as it would be published: its configuration, weights and tokenizer in a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in [recording("unibiomed", "config.json"), *recording("unibiomed", "tokenizer").iterdir()]:
        shutil.copy(path, folder / path.name)
    save_file(tensors("unibiomed", "model.safetensors"), folder / "model.safetensors")
    return folder


def names_of(kind):
    return json.loads((SMALL / "unibiomed" / f"hf_sa2va_{kind}_keys.json").read_text())


def config_of(tokenizer, kind="qwen2", model_type="sa2va_chat"):
    text = TEXT | dict(model_type=kind, vocab_size=len(tokenizer))
    return dict(
        model_type=model_type, vision_config=VISION, llm_config=text, template="phi3_chat", force_image_size=56,
        downsample_ratio=0.5, select_layer=-1, ps_version="v2", tiny_sam2=TINY_SAM2,
    )  # fmt: skip


def tokenizer_with(added=unibiomed.ADDED_TOKENS):
    """The byte tokenizer of the recordings, whose ids end in the grounding tokens."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(SMALL / "unibiomed" / "tokenizer")
    if added:
        return tokenizer
    bare = json.loads(tokenizer.backend_tokenizer.to_str())
    bare["added_tokens"] = [t for t in bare["added_tokens"] if t["content"] not in unibiomed.ADDED_TOKENS]
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(bare)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def published_tensors(model, text, kind):
    """The tensors of a model under published names: every published name is converted, and its tensors joined back."""
    ours = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    layers = {"language_model": 2, "vision_model": 2, "trunk": 5, "memory_attention": 1, "fuser": 2}
    published = {}
    for name in names_of(kind):
        numbered = re.search(
            r"(language_model|vision_model|trunk|memory_attention).*?\.(?:layers|blocks)\.(\d+)\.", name
        )
        if numbered and int(numbered[2]) >= layers[numbered[1]]:
            continue
        if name.endswith("attention.wqkv.weight"):
            base = re.sub(
                r"language_model\.model\.layers\.(\d+)\..*", r"backbone.vlm.model.language_model.layers.\1.", name
            )
            q, k, v = (ours[f"{base}self_attn.{letter}_proj.weight"] for letter in "qkv")
            heads = text["num_key_value_heads"]
            q, k, v = (
                part.reshape(heads, -1, q.shape[1] // text["num_attention_heads"], q.shape[1]) for part in (q, k, v)
            )
            published[name] = torch.cat([q, k, v], dim=1).reshape(-1, q.shape[-1]).clone()
            continue
        dummy = torch.zeros(3) if ".attn.qkv." in name and name.startswith("vision") else torch.zeros(1)
        targets = list(unibiomed.convert_state_dict({name: dummy}, text))
        if point := re.search(r"point_embeddings\.(\d)", name):
            published[name] = ours[targets[0]][int(point[1]), None].clone()
        elif ".attn.qkv." in name and name.startswith("vision"):
            published[name] = torch.cat([ours[target] for target in targets])
        elif targets[0] in ours:
            published[name] = ours[targets[0]].clone()
    # Where the width changes depends on the size of Hiera.
    blocks = "mask_head.sam.vision_encoder.backbone.blocks."
    for name, tensor in ours.items():
        if re.match(re.escape(blocks) + r"\d+\.proj\.", name):
            tail = name.removeprefix(blocks)
            published[f"{unibiomed.SAM}image_encoder.trunk.blocks.{tail}"] = tensor.clone()
    return published


def speak(model, tokenizer, words):
    """Weights of a language model that says these tokens one after the other behind a line break, whatever came before:
    no layer adds anything, embeddings are distinct, and the head of a token looks for the one before it."""
    language = model.language_model
    for layer in language.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    language.norm.weight.data.fill_(1.0)
    ids = [tokenizer("\n", add_special_tokens=False)["input_ids"][0], *tokenizer.convert_tokens_to_ids(words)]
    model.lm_head.weight.data.zero_()
    for place, (before, after) in enumerate(zip(ids, ids[1:], strict=False)):
        language.get_input_embeddings().weight.data[before] = torch.eye(language.config.hidden_size)[place] * 5
        model.lm_head.weight.data[after, place] = 1.0


def publish(folder, kind="qwen2", shards=1, extra=(), say=None):
    """Write a folder as published with random weights; the model it holds and its tensors are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_with()
    config = config_of(tokenizer, kind)
    torch.manual_seed(0)
    mask = unibiomed._tiny_mask_config(TINY_SAM2)
    model = GroundedMLLM(unibiomed.grounded_config(config, tokenizer, mask)).eval()
    if kind == "internlm2":
        config["llm_config"]["bias"] = False
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    # One matrix when published, two buffers in transformers.
    sam = model.mask_head.sam
    sam.shared_image_embedding.positional_embedding.copy_(sam.prompt_encoder.shared_embedding.positional_embedding)
    if say:
        speak(model, tokenizer, say)
    tensors = published_tensors(model, config["llm_config"], {"qwen2": "1b_qwen2", "internlm2": "8b_internlm2"}[kind])
    tensors |= {name: torch.zeros(1) for name in extra}
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, tensors, shards)
    return model, tensors


def write_shards(folder, tensors, count, kind="safetensors"):
    names = sorted(tensors)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    files = [f"{stem}-{i + 1:05d}-of-{count:05d}.{kind}" for i in range(count)]
    where = {name: files[i % count] for i, name in enumerate(names)}
    for file in files:
        part = {name: tensors[name].contiguous() for name in names if where[name] == file}
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": where}))


# -- full size ------------------------------------------------------------------------------------------------------
VIT = {
    "300M": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16),
    "6B": dict(hidden_size=3200, intermediate_size=12800, num_hidden_layers=45, num_attention_heads=25,
               qkv_bias=False, qk_normalization=True, norm_type="rms_norm"),
}  # fmt: skip


def llm(kind, hidden, layers, heads, kv, mlp, **more):
    return dict(model_type=kind, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=kv, intermediate_size=mlp, vocab_size=151679 if kind == "qwen2" else 92558,
                rms_norm_eps=1e-6, rope_theta=1e6) | more  # fmt: skip


_NTK = dict(rope_scaling={"type": "dynamic", "factor": 2.0}, bias=False, max_position_embeddings=32768)
#: Size -> vision tower and language model of the published InternVL 2.5 families.
SIZES = {
    "1B": ("300M", llm("qwen2", 896, 24, 14, 2, 4864)),
    "2B": ("300M", llm("internlm2", 2048, 24, 16, 8, 8192, **_NTK)),
    "4B": ("300M", llm("qwen2", 2048, 36, 16, 2, 11008)),
    "8B": ("300M", llm("internlm2", 4096, 32, 32, 8, 14336, **_NTK)),
    "26B": ("6B", llm("internlm2", 6144, 48, 48, 8, 16384, **_NTK)),
    "38B": ("6B", llm("qwen2", 5120, 64, 40, 8, 27648)),
    "78B": ("6B", llm("qwen2", 8192, 80, 64, 8, 29568)),
}


def full_size_names(size):
    """Name -> shape of a published folder, spelled from the recorded list of its language model and the sizes above."""
    tower, text = SIZES[size]
    vision = VIT[tower]
    recorded = names_of("1b_qwen2" if text["model_type"] == "qwen2" else "8b_internlm2")
    names = {}
    for name in recorded:
        layer = re.match(r"(vision_model\.encoder|language_model\.model)\.layers\.(\d+)\.(.*)", name)
        if layer is None:
            names[name] = None
        elif layer[2] == "0":
            count = (vision if layer[1].startswith("vision") else text)["num_hidden_layers"]
            names |= {f"{layer[1]}.layers.{i}.{layer[3]}": None for i in range(count)}
    if tower == "6B":
        names = {n: None for n in names if not re.search(r"vision_model.*(attn\.qkv|norm[12])\.bias$", n)}
        for i in range(vision["num_hidden_layers"]):
            names |= {f"vision_model.encoder.layers.{i}.attn.{letter}_norm.weight": None for letter in "qk"}
    return {name: _shape(name, vision, text, recorded) for name in names}


def _shape(name, vision, text, recorded):
    v, m = vision["hidden_size"], vision["intermediate_size"]
    d, f, rows = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    kv = d // text["num_attention_heads"] * text["num_key_value_heads"]
    rules = [
        (r"grounding_encoder", None), (r"text_hidden_fcs\.0\.weight", [d, d]), (r"text_hidden_fcs\.0\.bias", [d]),
        (r"text_hidden_fcs\.2\.weight", [256, d]), (r"text_hidden_fcs\.2\.bias", [256]),
        (r"class_embedding", [1, 1, v]), (r"position_embedding", [1, 1025, v]),
        (r"patch_embedding\.weight", [v, 3, 14, 14]), (r"patch_embedding\.bias", [v]),
        (r"attn\.qkv\.weight", [3 * v, v]), (r"attn\.qkv\.bias", [3 * v]), (r"attn\.proj\.weight", [v, v]),
        (r"vision_model.*mlp\.fc1\.weight", [m, v]), (r"vision_model.*mlp\.fc1\.bias", [m]),
        (r"vision_model.*mlp\.fc2\.weight", [v, m]), (r"vision_model", [v]),
        (r"mlp1\.0", [4 * v]), (r"mlp1\.1\.weight", [d, 4 * v]), (r"mlp1\.3\.weight", [d, d]), (r"mlp1", [d]),
        (r"embed_tokens|tok_embeddings|lm_head|output\.weight", [rows, d]), (r"norm\.weight$", [d]),
        (r"wqkv", [d + 2 * kv, d]), (r"(q_proj|o_proj|wo)\.weight", [d, d]), (r"[kv]_proj\.weight", [kv, d]),
        (r"[kv]_proj\.bias", [kv]), (r"q_proj\.bias", [d]), (r"(gate|up)_proj|\.w[13]\.", [f, d]),
        (r"down_proj|\.w2\.", [d, f]),
    ]  # fmt: skip
    for pattern, shape in rules:
        if re.search(pattern, name):
            return recorded[name] if shape is None else shape
    raise KeyError(name)
