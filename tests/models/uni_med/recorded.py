"""The tiny Uni-Med of the recordings."""

import json

from golden_files import SMALL
from safetensors.torch import load_file
from transformers import LlamaConfig

from unimed.models.uni_med import UniMedConfig, UniMedModel, UniMedProcessor

FULL = SMALL / "uni_med" / "full"
INDEX = json.loads((FULL / "index.json").read_text())
VISION = {"image_size": 112, "patch_size": 14, "dim": 32, "depth": 3, "heads": 4, "mlp_hidden": 139}
CONNECTOR = {
    "projector_type": "moe_mlp",
    "num_experts": 5,
    "resample_method": "projection",
    "resample_rate": 4,
    "router_method": "router_task_token",
    "router_type": "soft",
    "num_task_tokens": 1,
    "task_token_c": 24,
}


def renamed(name):
    name = name.replace("llm_model.base_model.model.", "language_model.").replace("ln_vision", "ln_vision")
    return (
        name if name.startswith(("visual", "ln_", "language")) else f"connector.{name.replace('llm_proj', 'projector')}"
    )


def tiny_config(**changes):
    text = LlamaConfig(**json.loads((FULL / "llm_config.json").read_text()))
    values = {"lora": {"r": 2, "lora_alpha": 16, "lora_dropout": 0.0}, "connector": CONNECTOR} | changes
    return UniMedConfig(vision=VISION, text_config=text, **values)


def processor(compat="reference", **changes):
    options = {"image_size": 112, "tokens_per_image": 16, "max_answer_tokens": 64} | changes
    return UniMedProcessor(FULL / "tokenizer.model", compat=compat, **options)


def recorded_model(**changes):
    model = UniMedModel(tiny_config(**changes))
    state = {renamed(n): t for n, t in load_file(FULL / "weights.safetensors").items() if "inv_freq" not in n}
    if model.config.sft_type != "lora":
        state = {n.replace(".base_layer", ""): t for n, t in state.items() if "lora_" not in n}
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and not left.missing_keys, left
    model.processor = processor()
    return model.eval()


def batch_of(name, images, compat="reference"):
    """What the model reads for a recorded batch: the arguments of `UniMedModel.forward`."""
    record = INDEX["batches"][name]
    options = {
        "chat_template": record.get("chat_template", True),
        "max_answer_tokens": record.get("max_txt_len", 64),
        "max_prompt_tokens": record.get("max_context_len", 3800),
    }
    reader = processor(compat, **options)
    if record["kind"] == "conversation":
        split = record["connect_sym"]
        rows = zip(record["conv_q"], record["conv_a"], strict=True)
        examples = [reader.conversation(q.split(split), a.split(split), 1) for q, a in rows]
    else:
        rows = zip(record["instruction_input"], record["answer"], strict=True)
        examples = [reader.example(q, a, q.count("<ImageHere>")) for q, a in rows]
    batch = reader.batch(examples)
    if record["img"] is not None:
        used = record["img"]
        if record["kind"] == "multi_image":
            used = [i for row, n in zip(used, record["length"], strict=True) for i in row[:n]]
        batch["pixel_values"] = images[used]
        batch["task"] = [record["task"]] * len(used)
    return batch
