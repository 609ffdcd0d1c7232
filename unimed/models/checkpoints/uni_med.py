"""A user's own Uni-Med `.pth`, with the EVA-ViT and Llama files it was trained on, to a `GroundedMLLM`.

No trained Uni-Med was ever published. The file holds only what learnt (connector, adapters); the rest comes from
`eva_vit_g.pth` and from a Hugging Face folder of Llama-2.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from unimed.files import atomic_folder
from unimed.models import foreign
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport, check_names, read_state_dict
from unimed.models.grounded.pieces import IMAGE_ID, PieceTokenizer
from unimed.models.weights import build_whole, fill

#: Keys of the saved configuration that describe the connector.
CONNECTOR_KEYS = (
    "has_moe", "projector_type", "num_experts", "resample_method", "resample_rate", "router_method", "router_type",
    "sparse_topk", "num_task_tokens", "task_token_c",
)  # fmt: skip
#: What Uni-Med trains with.
PUBLISHED_CONNECTOR = {
    "projector_type": "moe_mlp",
    "num_experts": 5,
    "resample_method": "projection",
    "resample_rate": 4,
    "router_method": "router_task_token",
    "router_type": "soft",
    "num_task_tokens": 1,
    "task_token_c": 5632,
}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
#: What the published code takes where the saved configuration is silent.
DEFAULTS = {"num_experts": 3, "num_task_tokens": 10, "task_token_c": 768, "lora_r": 64, "lora_alpha": 16}
_SPECIFIC = re.compile(r"^(llm_proj|moe_layers|router|task_tokens)\.")
_REST = re.compile(r"^(llm_model|llm_proj|moe_layers|router|task_tokens|visual_encoder|ln_vision)\.")


def recognises(path: Path) -> bool:
    """A single `.pth` whose names are those of the published trainer (`llm_proj.`, `llm_model.`)."""
    path = Path(path)
    if not path.is_file() or path.suffix not in (".pth", ".pt", ".safetensors"):
        return False
    try:
        names = list(read_state_dict(path))
    except (CheckpointError, OSError):
        return False
    return any(_SPECIFIC.match(name) for name in names) and all(_REST.match(name) for name in names)


def rename_trained(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of the published trainer -> names of a `GroundedMLLM` on EVA-ViT.

    Raises:
        CheckpointError: `moe_layers.` and its copy `llm_proj.` differ.
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        new = re.sub(r"^llm_model\.(base_model\.model\.)?", "backbone.lm.", name)
        new = re.sub(r"^(llm_proj|moe_layers)\.", "connector.projector.", new)
        new = re.sub(r"^(router|task_tokens)\.", r"connector.\1.", new)
        new = re.sub(r"^(visual_encoder|ln_vision)\.", r"backbone.\1.", new)
        if new in renamed and not torch.equal(renamed[new], tensor):
            raise CheckpointError(f"{name} is stored twice with different values; the file is damaged")
        renamed[new] = tensor
    return renamed


def rename_vision(state: dict[str, torch.Tensor], depth: int, tokens: int) -> dict[str, torch.Tensor]:
    """`eva_vit_g.pth` (or the trunk of open_clip's EVA01-g-14) -> the names of `EvaLanguageBackbone` in a model.

    Blocks from `depth` on, the final norm and the head are left out; positions are resized to `tokens`.
    """
    from unimed.models.backbones.eva import resize_positions

    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^(visual\.trunk\.|visual_encoder\.)", "", name)
        block = re.match(r"blocks\.(\d+)\.", name)
        if block and int(block[1]) >= depth or re.match(r"(norm|fc_norm|head|rope|text|logit_scale)\b", name):
            continue
        if name.endswith(("k_bias", "relative_position_index")):
            continue
        renamed[f"backbone.visual_encoder.{name}"] = resize_positions(tensor, tokens) if name == "pos_embed" else tensor
    return renamed


def read_trained(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors of the file and its saved `model` configuration (empty where it holds none)."""
    state = read_state_dict(path)
    if Path(path).suffix == ".safetensors":
        return state, {}
    whole = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    config = whole.get("config") if isinstance(whole, dict) else None
    return state, dict((config or {}).get("model", {}))


def connector_of(state: dict[str, torch.Tensor], saved: dict) -> dict:
    """Arguments of `build_connector`, from the saved configuration and, where it is silent, from the tensors.

    Raises:
        CheckpointError: the tensors do not say what is missing.
    """
    values = {key: saved[key] for key in CONNECTOR_KEYS if key in saved}
    names = [re.sub(r"^moe_layers\.", "llm_proj.", name) for name in state]
    if "projector_type" not in values:
        if "llm_proj.weight" in names:
            values["projector_type"] = "linear"
        elif any(re.match(r"llm_proj\.\d+\.\d+\.", name) for name in names):
            deep = any(re.match(r"llm_proj\.\d+\.2\.", name) for name in names)
            values["projector_type"] = "moe_mlp" if deep else "moe_linear"
        else:
            depth = len([name for name in names if re.match(r"llm_proj\.\d+\.weight", name)])
            values["projector_type"] = f"mlp{depth}x_gelu"
    if values["projector_type"].startswith("moe"):
        values["num_experts"] = len({m[1] for m in (re.match(r"llm_proj\.(\d+)\.", name) for name in names) if m})
    tokens = [tensor for name, tensor in state.items() if name.startswith("task_tokens.")]
    values["num_task_tokens"] = tokens[0].shape[1] if tokens else 0
    if tokens:
        values["task_token_c"] = tokens[0].shape[2]
    return values | {"compat": "reference"}


def add_arguments(parser) -> None:
    """The parts that the file does not hold."""
    parser.add_argument("--llama", help="Hugging Face folder of the language model (default: what the file names)")
    parser.add_argument("--eva", help="eva_vit_g.pth")


def convert(
    source: Path,
    destination: Path,
    llama: str | Path | None = None,
    eva: str | Path | None = None,
    vision: dict | None = None,
) -> ConversionReport:
    """Write everything as one folder that `unimed.load` opens. The adapters stay adapters.

    Args:
        llama: Hugging Face folder of the language model with its `tokenizer.model`; by default what the saved
            configuration calls `llm_model_path`.
        eva: `eva_vit_g.pth`; not needed where the file itself holds the encoder (`freeze_vit` False).
        vision: sizes that differ from EVA-ViT-g.

    Raises:
        CheckpointError: a part is missing, or tensors are missing, left over or of another shape; each is named.
        FileNotFoundError: `llama` or `eva` is not there.
    """
    from unimed.models.grounded.modeling import GroundedMLLM

    source, destination = Path(source), Path(destination)
    state, saved = read_trained(source)
    llama = Path(llama or saved.get("llm_model_path") or "")
    if not (llama / "config.json").is_file():
        raise CheckpointError(
            f"{source}: the language model is not in this file and {str(llama)!r} is no folder of one; "
            "give llama=FOLDER (Llama-2-7b-chat-hf)"
        )
    own_vision = any(name.startswith("visual_encoder.") for name in state)
    if eva is None and not own_vision:
        raise CheckpointError(f"{source}: the image encoder is not in this file; give eva=eva_vit_g.pth")
    sizes = dict(vision or {})
    if "image_size" in saved:
        sizes["image_size"] = int(saved["image_size"])
    lora_a = [tensor for name, tensor in state.items() if "lora_A" in name]
    whole = any(name.startswith("llm_model.") and name.endswith("embed_tokens.weight") for name in state)
    lora = None
    if lora_a:
        alpha = saved.get("lora_alpha", DEFAULTS["lora_alpha"])
        targets = sorted({m[1] for name in state if (m := re.search(r"\.(\w+)\.lora_A", name))})
        lora = {"r": lora_a[0].shape[0], "lora_alpha": alpha, "lora_dropout": 0.05, "target_modules": targets}
    config = model_config(
        sizes,
        connector_of(state, saved),
        foreign.config(llama),
        "lora" if lora else "full" if whole else "none",
        lora,
        freeze_vision=not own_vision,
    )
    backbone = config.backbone_config
    width = backbone.eva["dim"]
    merged = {"backbone.ln_vision.weight": torch.ones(width), "backbone.ln_vision.bias": torch.zeros(width)}
    merged |= {f"backbone.lm.{name}": tensor for name, tensor in _language(llama).items()}
    if eva is not None:
        merged |= rename_vision(read_state_dict(eva), backbone.eva["depth"], 1 + backbone.patches)
    trained = rename_trained(state)
    if lora:
        merged = {_wrapped(name, lora["target_modules"]): tensor for name, tensor in merged.items()}
    unknown = sorted(name for name in trained if "lora_" not in name and not name.startswith("connector."))
    merged |= trained
    with torch.device("meta"):
        skeleton = GroundedMLLM(config)
    report = _check(skeleton, merged, source, destination)
    report.notes.append(
        f"sft_type {config.language_tuning}; {len(trained)} trained tensors, {len(unknown)} of them base weights"
    )
    model = build_whole(GroundedMLLM, config, {n: t.float() for n, t in merged.items()}, source)
    model.processor = processor_of(
        PieceTokenizer.of(llama / "tokenizer.model"),
        config,
        chat_template=bool(saved.get("chat_template", True)),
        end_symbol=saved.get("end_sym", "</s>"),
        max_answer_tokens=int(saved.get("max_txt_len", 1024)),
        max_prompt_tokens=int(saved.get("max_context_len", 3800)),
    )
    with atomic_folder(destination) as folder:
        model.save_pretrained(folder)
        (folder / "conversion.json").write_text(json.dumps(report.to_dict(), indent=1))
    return report


def build_from_parts(
    llama: str | Path,
    eva: str | Path | None,
    connector: dict | None = None,
    sft_type: str = "lora",
    lora: dict | None = None,
    vision: dict | None = None,
    freeze_vision: bool = True,
    **prompts,
):
    """A model before training: encoder and language model from their files, connector and adapters new.

    Args:
        eva: `eva_vit_g.pth`; None leaves the encoder untrained, which makes sense only with `freeze_vision` False.
        connector: as published where it is not given.
        lora: changes to rank 8, alpha 16, dropout 0.05 on all linear layers.
        prompts: options of `processor_of`.

    Raises:
        CheckpointError, FileNotFoundError: a part is missing or does not fit.
    """
    from unimed.models.grounded.modeling import GroundedMLLM

    llama = Path(llama)
    if not (llama / "config.json").is_file():
        raise FileNotFoundError(f"{llama}: no folder of a language model (config.json, weights, tokenizer.model)")
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05} | (lora or {})
    config = model_config(vision, connector, foreign.config(llama), sft_type, lora, freeze_vision)
    model = GroundedMLLM(config)
    state = {f"backbone.lm.{name}": tensor for name, tensor in _language(llama).items()}
    if eva is not None:
        backbone = config.backbone_config
        state |= rename_vision(read_state_dict(eva), backbone.eva["depth"], 1 + backbone.patches)
    if sft_type == "lora":
        targets = sorted({n.split(".")[-3] for n in model.state_dict() if n.endswith("base_layer.weight")})
        state = {_wrapped(name, targets): tensor for name, tensor in state.items()}
    new = ("connector.", "backbone.ln_vision.", *(("backbone.visual_encoder.",) if eva is None else ()))
    fresh = {n: t for n, t in model.state_dict().items() if n.startswith(new) or "lora_" in n}
    report = _check(model, fresh | state, llama, "memory")
    fill(model, {name: tensor.float() for name, tensor in state.items()}, llama, untrained=tuple(fresh))
    report.notes.append(f"{len(fresh)} tensors start untrained: connector and adapters")
    model.processor = processor_of(PieceTokenizer.of(llama / "tokenizer.model"), config, **prompts)
    return model, report


def model_config(
    vision: dict | None,
    connector: dict | None,
    text_config,
    sft_type: str = "lora",
    lora: dict | None = None,
    freeze_vision: bool = True,
    **options,
):
    """`GroundedConfig` of a Uni-Med: EVA-ViT and a language model, a connector of experts, boxes as text, no masks.

    Args:
        vision: sizes that differ from EVA-ViT-g; connector: arguments of `build_connector`, as published by default.
        sft_type: "lora", "full" or "none".
        options: of `GroundedConfig`.
    """
    from unimed.models.backbones.eva import EvaLanguageConfig
    from unimed.models.grounded.configuration import GroundedConfig

    return GroundedConfig(
        backbone_config=EvaLanguageConfig(eva=vision, text_config=text_config, freeze_vision=freeze_vision),
        connector=dict(connector or PUBLISHED_CONNECTOR),
        language_tuning=sft_type,
        lora=dict(lora or {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}),
        **{"presence_head": False, "image_token_id": IMAGE_ID, "seg_token_id": -1} | options,
    )


def processor_of(
    tokenizer,
    config,
    chat_template: bool = True,
    end_symbol: str = "</s>",
    max_answer_tokens: int = 1024,
    max_prompt_tokens: int = 3800,
    compat: str | None = None,
    **options,
):
    """`GroundedProcessor` of a Uni-Med.

    Args:
        tokenizer: a `PieceTokenizer`. config: of `model_config`.
        chat_template: whether questions stand in Llama 2's [INST]; end_symbol: what ends an answer.
        options: of `GroundedProcessor`.
    """
    from unimed.models.connectors import ConnectorConfig
    from unimed.models.connectors.resample import resample
    from unimed.models.grounded.processing import GroundedProcessor

    backbone = config.backbone_config
    per_image = resample(torch.zeros(1, backbone.patches, 1), ConnectorConfig.from_dict(config.connector)).shape[1]
    fixed = dict(
        template="llama_2" if chat_template else "plain", stop=end_symbol, image_start="<Img>",
        image_token="<ImageHere>", image_end="</Img> ", image_join="", image_gap="", question_end=" ",
        tokens_per_tile=per_image, tile_size=backbone.eva["image_size"], max_tiles=1,
        tile_mean=CLIP_MEAN, tile_std=CLIP_STD, mask_size=0, max_prompt_tokens=max_prompt_tokens,
        max_answer_tokens=max_answer_tokens, cut_prompts=True,
        dialect={"type": "uni_med", "compat": compat}, compat=compat,
    )  # fmt: skip
    return GroundedProcessor(tokenizer, **fixed | options)


def _language(folder: Path) -> dict[str, torch.Tensor]:
    state = read_state_dict(folder)
    return {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}


def _wrapped(name: str, targets: list[str]) -> str:
    """`...q_proj.weight` -> `...q_proj.base_layer.weight`, where an adapter stands on it."""
    match = re.match(r"(backbone\.lm\.model\.layers\..*\.(\w+))\.(weight|bias)$", name)
    return f"{match[1]}.base_layer.{match[3]}" if match and match[2] in targets else name


def _check(skeleton, state, source, destination) -> ConversionReport:
    report = check_names(skeleton, state, "uni_med", source, destination)
    report.check()
    return report
