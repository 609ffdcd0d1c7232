"""Uni-Med from pixels and text to logits, loss and answers, as recorded from the published code."""

import json
import re
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import SMALL, tensors
from models.uni_med.recorded import (
    FULL,
    INDEX,
    batch_from,
    batch_of,
    processor,
    recorded_model,
    recorded_weights,
    task_ids,
)
from safetensors.torch import load_file, save_file

from unimed.models.backbones.eva import EvaEncoder, Float32LayerNorm, ImageSizeError, resize_positions
from unimed.models.grounded import GroundedMLLM

IO = tensors("uni_med", "full", "io.safetensors")


@pytest.fixture(scope="module")
def model():
    return recorded_model()


@pytest.mark.parametrize("name", INDEX["batches"])
def test_a_recorded_batch(model, name):
    batch = batch_of(name, IO["images"])
    with torch.no_grad():
        output = model(**batch)
    assert torch.equal(batch["labels"], IO[f"{name}.labels"])
    assert torch.equal(batch["attention_mask"], IO[f"{name}.attention_mask"])
    assert_close(output.loss.reshape(1), IO[f"{name}.loss"], "loss", MODEL)
    counts = (batch["labels"][:, 1:] != -100).sum(1)
    # The published loss per sample is its sum over the length of the padded row.
    per_row = output.sample_losses * counts / (batch["labels"].shape[1] - 1)
    assert_close(per_row, IO[f"{name}.loss_none"], "loss per sample", MODEL)
    if output.routing is not None and name != "multi_image":  # the recorded mean counts an image that is not used
        assert_close(output.routing.mean((0, 1)), IO[f"{name}.routing_mean"], "mean routing", MODEL)
        assert_close(output.routing, IO[f"{name}.routing"], "routing", MODEL)
    if f"{name}.logits" in IO:
        seen = batch["attention_mask"].bool()[..., None]
        assert_close(output.logits, IO[f"{name}.logits"], "logits", MODEL, where=seen)


def test_all_batches_are_recorded():
    assert len(INDEX["batches"]) == 18 and sum(f"{name}.logits" in IO for name in INDEX["batches"]) >= 5


@pytest.mark.parametrize("name", [n for n in INDEX["tokenization"]])
def test_ids_of_prompts_and_answers(name):
    record, recorded = INDEX["batches"][name], INDEX["tokenization"][name]
    reader = processor(max_prompt_tokens=3800)
    for row, (text, answer) in enumerate(zip(record["instruction_input"], record["answer"], strict=True)):
        expected = recorded["segment_ids"][row]
        flat = [i for n, part in enumerate(expected) for i in (*part, *([-200] * 16 if n < len(expected) - 1 else []))]
        ids = batch_from(reader, [([text], [answer])])["input_ids"][0].tolist()
        assert ids == [1, *flat, *recorded["answer_ids"][row][:64]]


@pytest.mark.parametrize("name", ["g_vqa", "g_refer", "g_caption", "g_qa"])
def test_generated_answers(model, name):
    record = INDEX["generation"][name]
    questions = record.get("questions", ["[qa] is aspirin safe?"])
    reader = model.processor
    shown = record["img"] is not None
    assembly = reader.assembly(share_images=False)
    for question in questions:
        assembly.add(np.zeros((4, 4, 3), np.uint8) if shown else None, [("user", question.rstrip())])
    batch = assembly.batch()
    if shown:
        batch["pixel_values"] = IO["images"][record["img"]]
    recorded = IO[f"{name}.output_ids"][:, 1:].tolist()
    with model.routed_as(record["task"]) if shown else nullcontext():
        ids = model.generate(**batch, max_new_tokens=len(recorded[0]))[:, batch["input_ids"].shape[1] :].tolist()
    cut = [row[: row.index(2) + 1] if 2 in row else row for row in recorded]
    assert [row[: len(c)] for row, c in zip(ids, cut, strict=True)] == cut
    if "token_ids_per_segment" in record:
        prompts = [example.ids for example in assembly.examples]
        for prompt, parts in zip(prompts, record["token_ids_per_segment"], strict=True):
            assert [i for i in prompt if i != -200] == [i for part in parts for i in part]


def test_an_answer_is_the_same_alone_and_in_a_batch():
    model = recorded_model()
    model.processor = processor(compat=None)
    images = [np.random.default_rng(n).integers(0, 255, (40, 50, 3), dtype=np.uint8) for n in range(2)]
    texts, tasks = ["what organ is shown?", "[refer] spleen"], ["vqa", None]
    together = model.predict_batch(images, texts, task=tasks, max_new_tokens=6)
    for image, text, task, one in zip(images, texts, tasks, together, strict=True):
        assert model.predict(image, text, task=task, max_new_tokens=6).text == one.text
    # One image, two tasks: each answer is on its own way through the experts.
    texts, tasks = ["spleen", "spleen"], ["vqa", "refer"]
    both = model.predict_batch([images[0]] * 2, texts, task=tasks, max_new_tokens=6)
    alone = [model.predict(images[0], "spleen", task=task, max_new_tokens=6) for task in tasks]
    assert [one.text for one in both] == [one.text for one in alone]
    assert model.predict(images[0], "spleen", "refer", max_new_tokens=6).text == alone[1].text
    assert model.predict_batch(images, texts, tasks, max_new_tokens=6)[0].text == alone[0].text
    assert isinstance(model.predict_batch([images], ["compare them"], max_new_tokens=3)[0].text, str)
    assert isinstance(model.predict(None, "is aspirin safe?", max_new_tokens=3).text, str)


def test_mixed_tasks_lose_what_single_tasks_lose(model):
    names = ["mixed_vqa", "mixed_refer", "mixed_qa"]
    parts = [batch_of(name, IO["images"]) for name in names]
    reader = processor(compat=None)
    rows = [INDEX["batches"][name] for name in names]
    pixels = torch.cat([p["pixel_values"] for p in parts if "pixel_values" in p])
    mixed = batch_from(reader, [(r["instruction_input"][:1], r["answer"][:1]) for r in rows], pixels)
    with torch.no_grad():
        losses = model(**mixed, task=task_ids([r["task"] for r in rows])).sample_losses
    recorded = torch.cat([IO[f"{name}.loss"] for name in names])
    assert_close(losses, recorded, "losses", MODEL)


def test_vit_and_its_norm():
    folder = SMALL / "uni_med" / "vit"
    io, weights = load_file(folder / "io.safetensors"), load_file(folder / "weights.safetensors")
    encoder = EvaEncoder(112, 14, 32, 3, 4, 139).eval()
    encoder.load_state_dict({n.removeprefix("visual_encoder."): t for n, t in weights.items() if n.startswith("vis")})
    norm = Float32LayerNorm(32, eps=1e-5)
    with torch.no_grad():
        features = encoder(io["image"])
        assert_close(features, io["features"], "features", MODEL)
        assert_close(norm(features), io["ln_vision_identity_affine_out"], "norm without weights", MODEL)
        norm.load_state_dict({n.removeprefix("ln_vision."): t for n, t in weights.items() if n.startswith("ln")})
        assert_close(norm(features), io["ln_vision_out"], "norm", MODEL)
        half = norm(io["ln_vision_half_in"])
    assert half.dtype == torch.float16
    assert_close(half.float(), io["ln_vision_half_out"].float(), "norm of half precision", 1e-3)
    for size in (4, 11):
        resized = resize_positions(io[f"interp_in_8to{size}"], size**2 + 1)
        assert_close(resized.float(), io[f"interp_out_8to{size}"], f"positions for {size}", LAYER)
    with pytest.raises(ImageSizeError, match="112, 112"):
        encoder(torch.zeros(1, 3, 98, 98))


def test_saved_and_opened_again(model, tmp_path):
    import unimed

    model.save_pretrained(tmp_path)
    again = unimed.load(tmp_path, device="cpu")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "unimed_grounded"
    check_same(again, model)


def check_same(again, model):
    batch = batch_of("vqa", IO["images"])
    with torch.no_grad():
        assert_close(again(**batch).logits, model(**batch).logits, "logits", LAYER)
    learning = {n for n, p in again.named_parameters() if p.requires_grad}
    assert learning == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in learning} == {"connector", "backbone"} and not any("visual" in n for n in learning)
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    assert again.predict(image, "what organ?", max_new_tokens=3).text == (
        model.predict(image, "what organ?", max_new_tokens=3).text
    )


def test_folders_of_the_former_family_open_and_are_saved_in_the_present_form(model, tmp_path):
    import unimed

    old = tmp_path / "old"
    shutil.copytree(SMALL / "uni_med" / "saved", old)
    shutil.copy(FULL / "tokenizer.model", old)
    former = {
        re.sub(r"^(router|task_tokens|llm_proj)", lambda m: f"connector.{m[1]}", n)
        .replace("llm_proj", "projector")
        .replace("llm_model.base_model.model.", "language_model."): t
        for n, t in recorded_weights().items()
    }
    save_file(former, old / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((old / "config.json").read_text())["model_type"] == "unimed_uni_med"
    again = unimed.load(old, device="cpu")
    assert type(again) is GroundedMLLM and again.processor.compat == "reference"
    check_same(again, model)
    again.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "unimed_grounded"
    check_same(unimed.load(tmp_path / "new", device="cpu"), model)


@pytest.mark.parametrize(("sft_type", "learns"), [("lora", {"lora"}), ("full", {"model", "lm_head"}), ("none", set())])
def test_what_of_the_language_model_learns(sft_type, learns):
    names = [n for n, p in recorded_model(sft_type=sft_type).named_parameters() if p.requires_grad]
    assert not any("visual_encoder" in n or "ln_vision" in n for n in names)
    language = [n for n in names if n.startswith("backbone.lm")]
    assert {"lora" if "lora_" in n else n.split(".")[2] for n in language} == learns
