"""The tiny Uni-Med of the recordings, a configuration of `GroundedMLLM`."""

import json
import re

import numpy as np
from golden_files import SMALL
from safetensors.torch import load_file
from transformers import LlamaConfig

from unimed.models.checkpoints.uni_med import model_config, processor_of
from unimed.models.grounded import GroundedMLLM
from unimed.models.grounded.pieces import PieceTokenizer

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
LORA = {"r": 2, "lora_alpha": 16, "lora_dropout": 0.0}
_WRAPPED = re.compile(r"^(?:<Img><ImageHere></Img> )*(.*?)( ?)$", re.DOTALL)


def renamed(name):
    name = name.replace("llm_model.base_model.model.", "backbone.lm.").replace("llm_proj", "projector")
    if name.startswith(("visual", "ln_")):
        return f"backbone.{name}"
    return name if name.startswith("backbone") else f"connector.{name}"


def tiny_config(sft_type="lora", lora=LORA, connector=CONNECTOR, vision=VISION):
    text = LlamaConfig(**json.loads((FULL / "llm_config.json").read_text()))
    return model_config(vision, connector, text, sft_type, lora)


def processor(compat="reference", image_size=112, **changes):
    config = tiny_config(vision=VISION | {"image_size": image_size})
    tokenizer = PieceTokenizer.of(FULL / "tokenizer.model")
    return processor_of(tokenizer, config, compat=compat, **{"max_answer_tokens": 64} | changes)


def recorded_weights():
    return {n: t for n, t in load_file(FULL / "weights.safetensors").items() if "inv_freq" not in n}


def recorded_model(**changes):
    model = GroundedMLLM(tiny_config(**changes))
    state = {renamed(n): t for n, t in recorded_weights().items()}
    if model.config.language_tuning != "lora":
        state = {n.replace(".base_layer", ""): t for n, t in state.items() if "lora_" not in n}
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and not left.missing_keys, left
    model.processor = processor()
    return model.eval()


def dummies(count):
    return [np.zeros((4, 4, 3), np.uint8) for _ in range(count)]


def batch_from(reader, rows, pixels=None):
    """Batch of (instruction, answer) as recorded, and of conversations, whose images are tensors already."""
    assembly = reader.assembly(share_images=False)
    for instructions, answers in rows:
        count, turns = instructions[0].count("<ImageHere>"), []
        for question, answer in zip(instructions, answers, strict=True):
            body, reader.question_end = _WRAPPED.match(question).groups()
            turns += [("user", body), ("assistant", answer)]
        if not count:
            turns[0] = ("user", _WRAPPED.match(instructions[0])[0])
        assembly.add(dummies(count), turns) if count else assembly.add(None, turns)
    batch = assembly.batch()
    batch.pop("pixel_values", None)
    return batch | ({} if pixels is None or not len(pixels) else {"pixel_values": pixels})


def batch_of(name, images, compat="reference"):
    """What the model reads for a recorded batch: the arguments of `GroundedMLLM.forward`."""
    record = INDEX["batches"][name]
    options = {
        "chat_template": record.get("chat_template", True),
        "max_answer_tokens": record.get("max_txt_len", 64),
        "max_prompt_tokens": record.get("max_context_len", 3800),
    }
    reader = processor(compat, **options)
    if record["kind"] == "conversation":
        split = record["connect_sym"]
        rows = [(q.split(split), a.split(split)) for q, a in zip(record["conv_q"], record["conv_a"], strict=True)]
    else:
        rows = [([q], [a]) for q, a in zip(record["instruction_input"], record["answer"], strict=True)]
    used = record["img"] or []
    if record["kind"] == "multi_image":
        used = [i for row, n in zip(used, record["length"], strict=True) for i in row[:n]]
    batch = batch_from(reader, rows, images[used])
    return batch | ({"task": task_ids([record["task"]] * len(rows))} if used else {})


def task_ids(names):
    import torch

    from unimed.models.connectors.configuration import UNI_MED_TASKS

    return torch.tensor([UNI_MED_TASKS.index(name) if name in UNI_MED_TASKS else 0 for name in names])


def instruction(reader, task, text, images):
    """A question as the processor writes it, each image as one place."""
    return re.sub("(<ImageHere>)+", "<ImageHere>", reader.question(f"[{task}] {text}", [1] * images))


def prompt(reader, text, images, predicting=False):
    """Ids of a question, or of the question of a training example."""
    if predicting:
        return reader.encode_prompt([("user", text)], [1] * images)
    ids, labels = reader.encode_example([("user", text), ("assistant", "x")], [1] * images)
    return ids[: next(place for place, label in enumerate(labels) if label != -100)]


def answer(reader, text):
    ids, labels = reader.encode_example([("user", "x"), ("assistant", text)], [])
    return [i for i, label in zip(ids, labels, strict=True) if label != -100]
