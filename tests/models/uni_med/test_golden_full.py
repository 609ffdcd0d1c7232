"""Uni-Med from pixels and text to logits, loss and answers, as recorded from the published code."""

import json

import pytest
import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import SMALL, tensors
from models.uni_med.recorded import INDEX, batch_of, processor, recorded_model
from safetensors.torch import load_file

from unimed.models.uni_med.vision import EvaEncoder, Float32LayerNorm, ImageSizeError, resize_positions

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
        images = text.count("<ImageHere>")
        expected = recorded["segment_ids"][row]
        flat = [i for n, part in enumerate(expected) for i in (*part, *([-200] * 16 if n < len(expected) - 1 else []))]
        assert reader.prompt(text, images) == flat
        assert reader.answer(answer) == recorded["answer_ids"][row][:64]


@pytest.mark.parametrize("name", ["g_vqa", "g_refer", "g_caption", "g_qa"])
def test_generated_answers(model, name):
    record = INDEX["generation"][name]
    questions = record.get("questions", ["[qa] is aspirin safe?"])
    reader = model.processor
    images = 0 if record["img"] is None else 1
    texts = [f"<Img><ImageHere></Img> {q.rstrip()} " if images else q for q in questions]
    prompts = [reader.prompt(text, images, predicting=True) for text in texts]
    pixels = IO["images"][record["img"]] if images else None
    recorded = IO[f"{name}.output_ids"][:, 1:].tolist()
    ids = model.answer_prompts(prompts, pixels, record["task"], max_new_tokens=len(recorded[0]))
    cut = [row[: row.index(2) + 1] if 2 in row else row for row in recorded]
    assert [row[: len(c)] for row, c in zip(ids, cut, strict=True)] == cut
    if "token_ids_per_segment" in record:
        for prompt, parts in zip(prompts, record["token_ids_per_segment"], strict=True):
            assert [i for i in prompt if i != -200] == [i for part in parts for i in part]


def test_an_answer_is_the_same_alone_and_in_a_batch(model):
    reader = processor(compat=None)
    texts = ["<Img><ImageHere></Img> [vqa] what organ is shown? ", "<Img><ImageHere></Img> [refer] spleen "]
    prompts = [reader.prompt(text, 1, predicting=True) for text in texts]
    together = model.answer_prompts(prompts, IO["images"][:2], ["vqa", "refer"], max_new_tokens=6)
    alone = [
        model.answer_prompts([p], IO["images"][i : i + 1], [t], max_new_tokens=6)[0]
        for i, (p, t) in enumerate(zip(prompts, ["vqa", "refer"], strict=True))
    ]
    assert [reader.decode(a) for a in together] == [reader.decode(a) for a in alone]


def test_mixed_tasks_lose_what_single_tasks_lose(model):
    names = ["mixed_vqa", "mixed_refer", "mixed_qa"]
    parts = [batch_of(name, IO["images"]) for name in names]
    reader = processor(compat=None)
    rows = [INDEX["batches"][name] for name in names]
    examples = [
        reader.example(r["instruction_input"][0], r["answer"][0], r["instruction_input"][0].count("<ImageHere>"))
        for r in rows
    ]
    mixed = reader.batch(examples) | {
        "pixel_values": torch.cat([p["pixel_values"] for p in parts if "pixel_values" in p]),
        "task": [t for p in parts for t in p.get("task", ())],
    }
    with torch.no_grad():
        losses = model(**mixed).sample_losses
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
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "unimed_uni_med"
    batch = batch_of("vqa", IO["images"])
    with torch.no_grad():
        assert_close(again(**batch).logits, model(**batch).logits, "logits", LAYER)
    learning = {n.split(".")[0] for n, p in again.named_parameters() if p.requires_grad}
    assert learning == {"connector", "language_model"}
    assert again.predict(torch.zeros(40, 50, 3, dtype=torch.uint8).numpy(), "what organ?", max_new_tokens=3).text == (
        model.predict(torch.zeros(40, 50, 3, dtype=torch.uint8).numpy(), "what organ?", max_new_tokens=3).text
    )


@pytest.mark.parametrize(("sft_type", "learns"), [("lora", {"lora"}), ("full", {"model", "lm_head"}), ("none", set())])
def test_what_of_the_language_model_learns(sft_type, learns):
    names = [n for n, p in recorded_model(sft_type=sft_type).named_parameters() if p.requires_grad]
    assert not any(n.startswith(("visual_encoder", "ln_vision")) for n in names)
    language = [n for n in names if n.startswith("language_model")]
    assert {"lora" if "lora_" in n else n.split(".")[1] for n in language} == learns
