"""LLaVA v1, LISA and uMedGround checkpoints: names, merging, both tokenizers, the recorded tiny model end to end."""

import json

import numpy as np
import pytest
import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import SMALL, recorded_normal, tensors
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

import unimed
from unimed.losses import box_published
from unimed.models.checkpoints import lisa, llava_v1, umedground
from unimed.models.checkpoints.reading import CheckpointError
from unimed.models.grounded.generation import generate
from unimed.models.grounded.modeling import GroundedMLLM

GOLDEN = SMALL / "umedground"
TEXT = {"num_attention_heads": 4, "rms_norm_eps": 1e-5, "mm_vision_tower": "clip", "model_type": "llava"}
CLIP = {"num_attention_heads": 2}


def published_shapes(layout):
    shapes = json.loads((GOLDEN / "checkpoint_keys.json").read_text())[layout]
    # The second head has the published width of 256 there although the tiny decoder has 64; both are 256 in reality.
    return {
        name: [64 if side == 256 else side for side in shape] if name.split("model.")[-1].startswith("bbox") else shape
        for name, shape in shapes.items()
    }


def random_state(layout="peft_training_state_dict", rows=None):
    torch.manual_seed(0)
    state = {name: 0.1 * torch.randn(shape) for name, shape in published_shapes(layout).items()}
    for name in state:
        if rows is not None and name.endswith(("embed_tokens.weight", "lm_head.weight")):
            state[name] = state[name][:rows]
    return state


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


def write_base(folder):
    """A LLaVA folder of 320 pieces: configuration, tokenizer and CLIP's configuration."""
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    texts = ["the heart is enlarged small effusion of the left lung It is ASSISTANT: USER: [INST] pneumonia [BOX]"] * 3
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<unk>", "<s>", "</s>", "\u2581["],
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    fast.add_tokens([f"word{i}" for i in range(320 - len(fast))])
    assert len(fast) == 320
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(TEXT))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def write_clip(folder):
    """A CLIP folder with the tower of the published state."""
    folder.mkdir(exist_ok=True)
    prefix = "base_model.model.model.vision_tower.vision_tower."
    tensors = {n.removeprefix(prefix): t for n, t in random_state().items() if n.startswith(prefix)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": CLIP}))
    return folder


def test_adapters_merge_as_recorded():
    recorded = load_file(GOLDEN / "lora_merge.safetensors")
    for base_name in ("q_proj.weight", "q_proj.base_layer.weight"):
        state = {
            f"base_model.model.model.layers.0.self_attn.{base_name}": recorded["W"],
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": recorded["lora_A"],
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight": recorded["lora_B"],
        }
        merged = lisa.merge_lora(state, 16.0)
        assert list(merged) == ["model.layers.0.self_attn.q_proj.weight"]
        (weight,) = merged.values()
        assert_close(weight, recorded["W_merged"], "merged weight", LAYER)
        assert_close(recorded["x"] @ weight.T, recorded["y_unmerged"], "output", LAYER)
    del state["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"]
    with pytest.raises(CheckpointError, match="q_proj"):
        lisa.merge_lora(state)


def test_every_recorded_name_finds_its_place():
    plain = lisa.merge_lora(random_state())
    merged = published_shapes("merged_saved_keys_without_vision_tower")
    assert {n for n in plain if ".vision_tower." not in n} == set(merged)
    state = lisa.convert_state_dict(plain)
    state = {n: t for n, t in state.items() if "bbox_prediction_head_drop" not in n}
    ids = {"image": 323, "box": 320}
    config = lisa.grounded_config(TEXT, plain, state, CLIP, ids, {"kind": "mhp", "tokens": True})
    with torch.device("meta"):
        model = GroundedMLLM(config)
    wanted = model.state_dict()
    assert set(wanted) == set(state)
    assert all(wanted[name].shape == state[name].shape for name in wanted)
    assert config.mask_config.predicts_masks is False


@pytest.mark.parametrize(("rows", "spelled"), [(323, "[BOX]"), (322, umedground.PIECE)])
def test_a_run_that_was_not_merged_and_both_tokenizers(tmp_path, base, rows, spelled):
    torch.save(random_state(rows=rows), tmp_path / "pytorch_model.bin")
    report = umedground.convert(tmp_path / "pytorch_model.bin", tmp_path / "out", base=base)
    assert not report.missing and not report.unexpected
    assert all("drop" in name or "inv_freq" in name or "position_ids" in name for name in report.dropped)
    assert bool(report.notes) == (spelled != "[BOX]")
    model = unimed.load(tmp_path / "out")
    assert model.processor.box_token == spelled
    assert model.config.box_token_id == model.processor.tokenizer.convert_tokens_to_ids(spelled)
    assert model.config.image_token_id == rows and model.config.prompt_state == "before"
    merged = lisa.merge_lora(random_state(rows=rows))
    query = model.language_model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(query, merged["model.layers.0.self_attn.q_proj.weight"])
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    prediction = model.predict(image, "the heart is enlarged", max_new_tokens=3)
    assert isinstance(prediction.text, str)
    with pytest.raises(CheckpointError, match="--base"):
        umedground.convert(tmp_path / "pytorch_model.bin", tmp_path / "none")
    torch.save(random_state(rows=321), tmp_path / "odd.bin")
    with pytest.raises(CheckpointError, match="321 rows"):
        umedground.convert(tmp_path / "odd.bin", tmp_path / "none", base=base)


def shards(folder, state, base, **changes):
    """A folder as transformers 4.30 saved it: shards, an index, configuration and tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(changes.pop("tokens"), special_tokens=True)
    tokenizer.save_pretrained(folder)
    names = sorted(state)
    index = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        shard = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(TEXT | changes))


def test_a_merged_folder_needs_clip(tmp_path, base, clip):
    state = random_state("merged_saved_keys_without_vision_tower")
    source = tmp_path / "merged"
    source.mkdir()
    shards(source, state, base, tokens=["[BOX]", "<im_start>", "<im_end>"])
    assert umedground.recognises(source) and not lisa.recognises(source) and not llava_v1.recognises(source)
    with pytest.raises(CheckpointError, match="--clip"):
        umedground.convert(source, tmp_path / "none")
    report = umedground.convert(source, tmp_path / "out", clip=clip, kind="point")
    assert not report.missing and not report.unexpected
    model = unimed.load(tmp_path / "out")
    assert model.box_head.kind == "point" and model.config.box_token_id == 320


def test_half_precision_stays_half_and_answers(tmp_path, base, clip):
    state = random_state("merged_saved_keys_without_vision_tower")
    source = tmp_path / "merged"
    source.mkdir()
    shards(source, {n: t.bfloat16() for n, t in state.items()}, base, tokens=["[BOX]", "<im_start>", "<im_end>"])
    umedground.convert(source, tmp_path / "out", clip=clip)
    model = unimed.load(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    assert isinstance(model.predict(image, "the heart", max_new_tokens=3).text, str)
    from unimed.models.grounded.teacher_forcing import teacher_forced

    (said,) = teacher_forced(model, [image], ["the heart"], ["heart. It is [BOX]. lung. It is [BOX]."])
    assert [region.phrase for region in said.regions] == ["heart", "lung"]
    assert all(np.isfinite(region.box_std_px).all() for region in said.regions)
    whole = unimed.load(tmp_path / "out", dtype="float32")
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def lisa_state():
    """A published LISA: no box heads, but the parts that make masks."""
    state = random_state("merged_saved_keys_without_vision_tower")
    state = {n: t for n, t in state.items() if "bbox_prediction_head" not in n}
    decoder = "model.visual_model.mask_decoder."
    for name, shape in (
        ("output_upscaling.0", (64, 16, 2, 2)), ("output_upscaling.1", (16,)), ("output_upscaling.3", (16, 8, 2, 2)),
    ):  # fmt: skip
        state[f"{decoder}{name}.weight"] = torch.randn(shape)
        state[f"{decoder}{name}.bias"] = torch.randn(shape[1] if len(shape) > 1 else shape[0])
    for mask in range(4):
        for layer, out in ((0, 64), (1, 64), (2, 8)):
            state[f"{decoder}output_hypernetworks_mlps.{mask}.layers.{layer}.weight"] = torch.randn(out, 64)
            state[f"{decoder}output_hypernetworks_mlps.{mask}.layers.{layer}.bias"] = torch.randn(out)
    return state


def llava_state():
    """A published LLaVA v1 of 320 pieces."""
    state = random_state("merged_saved_keys_without_vision_tower", rows=320)
    keep = ("model.embed_tokens.", "model.layers.", "model.norm.", "model.mm_projector.", "lm_head.")
    return {name: tensor for name, tensor in state.items() if name.startswith(keep)}


def test_lisa_keeps_its_masks(tmp_path, base, clip):
    state = lisa_state()
    source = tmp_path / "lisa"
    source.mkdir()
    shards(source, state, base, tokens=["[SEG]", "<im_start>", "<im_end>"], architectures=["LISAForCausalLM"])
    assert lisa.recognises(source) and not umedground.recognises(source) and not llava_v1.recognises(source)
    report = lisa.convert(source, tmp_path / "out", clip=clip)
    assert not report.missing and not report.unexpected
    model = unimed.load(tmp_path / "out")
    assert model.config.seg_token_id == 320 and model.box_head is None
    image = torch.randn(1, 3, 256, 256)
    masks = model.mask_head.decode(model.mask_head.encode(image), torch.zeros(1, dtype=torch.long), torch.randn(1, 64))
    assert masks.logits.shape == (1, 128, 128)
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    cut = model.segment_boxes(picture, [(5, 5, 30, 20)], ["a box"])
    assert cut.regions[0].mask.shape == (40, 60)


def test_adapters_merge_as_peft_merges_them():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 6, bias=False)})
    wrapped = get_peft_model(base, LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj"]))
    for parameter in wrapped.parameters():
        torch.nn.init.normal_(parameter)
    merged = lisa.merge_lora({name: tensor.clone() for name, tensor in wrapped.state_dict().items()}, 5.0)
    expected = wrapped.merge_and_unload()["q_proj"].weight
    torch.testing.assert_close(merged["q_proj.weight"], expected.detach())


@pytest.mark.parametrize("style", ["tags", "published"])
def test_a_new_model_starts_from_published_parts(tmp_path, base, clip, style):
    from unimed.registry import TASKS

    merged = random_state("merged_saved_keys_without_vision_tower", rows=320)
    keep = ("model.embed_tokens.", "model.layers.", "model.norm.", "model.mm_projector.", "lm_head.")
    source = tmp_path / "llava"
    source.mkdir()
    shards(source, {n: t for n, t in merged.items() if n.startswith(keep)}, base, tokens=[])
    visual = "model.visual_model."
    weights = {n.removeprefix(visual): t for n, t in merged.items() if n.startswith(visual) and "bbox" not in n}
    torch.save(weights, tmp_path / "sam_vit_t.pth")
    parts = dict(
        llava=str(source), sam_weights=str(tmp_path / "sam_vit_t.pth"), clip=str(clip), box_head="umhp", style=style,
        language_box_head=style == "published", mask_content=160 if style == "published" else None,
    )  # fmt: skip
    task = TASKS.build(
        dict(type="ReportGrounding", model=parts, language_box=1.0, lora=dict(r=2, target_modules=["q_proj", "v_proj"]))
    )
    model = task.model
    known = merged["model.embed_tokens.weight"]
    rows = model.get_input_embeddings().weight
    torch.testing.assert_close(rows[:320], known)
    torch.testing.assert_close(rows[model.config.box_token_id].detach(), known.mean(dim=0))
    encoder = model.mask_head.sam.vision_encoder.patch_embed.projection.weight
    torch.testing.assert_close(encoder.detach(), weights["image_encoder.patch_embed.proj.weight"])
    assert len(rows) == 320 + (6 if style == "tags" else 4)
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    said = "<p> heart </p> [BOX]." if style == "tags" else "heart. It is [BOX]."
    sample = unimed.Sample(
        (image,), unimed.Geometry.pixels(), "s", conversation=(("user", "the heart"), ("assistant", said)),
        regions=(unimed.Region("heart", box_xyxy_px=(10, 10, 40, 50)),), labels={"task": "mrg"},
    )  # fmt: skip
    from unimed.data.collate.grounded import GroundedCollator

    batch = GroundedCollator(task.processor)([sample])
    box = torch.tensor([[10, 10, 40, 50]]) / 80
    torch.testing.assert_close(batch["boxes_xyxy"], box.float())
    losses = task(batch)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"]) and model.seg_projection[0].weight.grad.abs().sum() > 0
    if style == "published":
        # The second head is frozen but pulls on the projection, as published.
        assert not any(p.requires_grad for p in model.language_box_head.parameters())
    (prediction,) = TASKS.build(dict(type="ReportGrounding", model=model, protocol="teacher")).predict_samples([sample])
    assert prediction.regions[0].phrase == "heart"


@torch.no_grad()
def test_llava_v1_becomes_transformers_llava(tmp_path, base, clip):
    state = llava_state()
    source = tmp_path / "llava"
    source.mkdir()
    shards(source, state, base, tokens=[])
    assert llava_v1.recognises(source) and not lisa.recognises(source)
    report = llava_v1.convert(source, tmp_path / "out", clip=clip)
    assert not report.missing and not report.unexpected
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    features = torch.randn(1, 5, 32)
    ours = model.model.multi_modal_projector(features)
    theirs = torch.nn.functional.linear(features, state["model.mm_projector.weight"], state["model.mm_projector.bias"])
    torch.testing.assert_close(ours, theirs)


# -- the recorded model --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording():
    recorded = tensors("umedground", "tiny_end_to_end.safetensors")
    published = {name[3:]: tensor for name, tensor in recorded.items() if name.startswith("sd.")}
    state = lisa.convert_state_dict(published)
    state = {name: tensor for name, tensor in state.items() if "bbox_prediction_head_drop" not in name}
    ids = {"image": 320, "box": 7}
    config = lisa.grounded_config(TEXT, published, state, CLIP, ids, {"kind": "mhp", "tokens": True})
    model = GroundedMLLM.from_pretrained(None, config=config, state_dict=state).eval()
    assert set(model.state_dict()) == set(state)
    expanded = {}
    for name, image in (("input_ids", 320), ("labels", -100), ("attention_mask", True)):
        rows = zip(recorded["in.input_ids"].tolist(), recorded[f"in.{name}"].tolist(), strict=True)
        expanded[name] = torch.tensor(
            [
                sum(([image] * 256 if i == -200 else [v] for i, v in zip(ids, values, strict=True)), [])
                for ids, values in rows
            ]
        )
    expanded["attention_mask"] = expanded["attention_mask"].long()
    expanded["pixel_values"] = torch.cat([recorded_normal(f"tinyfull.in.clip{i}", (1, 3, 224, 224)) for i in range(2)])
    images = [recorded_normal(f"tinyfull.in.img{i}", (1, 3, 256, 256)) for i in range(2)]
    expanded["mask_pixel_values"] = torch.cat(images)
    return model, recorded, expanded


@pytest.mark.parametrize("mode", ["plain", "plain_nollava", "uncertain", "mhp", "umhp"])
def test_recorded_losses_and_gradients(recording, mode):
    model, recorded, batch = recording
    model.zero_grad()
    projected = []

    def keep(module, inputs, output):
        output.retain_grad()
        projected.append(output)

    hook = model.seg_projection.register_forward_hook(keep)
    output = model(**batch)
    hook.remove()
    # The published model has no row for the image token; ours has one more logit, always zero, in the softmax.
    wanted = batch["labels"][:, 1:] != -100
    logits = output.logits[:, :-1][wanted][:, :320]
    text = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][wanted])
    kind = mode if mode in ("uncertain", "mhp", "umhp") else "point"
    images, start = [], 0
    for image, count in enumerate((1, 2)):
        rows = slice(start, start + count)
        start += count
        language = None if mode == "plain_nollava" else output.language_boxes[rows]
        hypotheses = list(output.boxes.hypotheses[rows].unbind(1))
        images.append(box_published.image_losses(kind, hypotheses, recorded["in.bboxes"][image], language))
    total = box_published.batch_total(text, images)
    total.backward()
    name = f"train.{mode}."
    assert_close(output.loss, recorded[name + "ce_loss"], "loss of the model", MODEL)
    assert_close(text, recorded[name + "ce_loss"], "loss of the text", MODEL)
    assert_close(total, recorded[name + "total_loss"], "loss", MODEL)
    assert_close(model.lm_head.weight.grad[:320], recorded[name + "grad_lm_head"], "gradient of the words", MODEL)
    last = model.box_head.layers[4].weight.grad
    assert_close(last, recorded[name + "grad_bbox_head_last_w"], "gradient of the boxes", MODEL)
    theirs = recorded[name + "grad_projected"]
    ours = sum(part.grad for part in projected if part.grad is not None)
    # Our projection sees the three [BOX] states alone; all other rows of theirs must be without gradient.
    boxes = torch.nn.functional.pad(batch["input_ids"][:, 1:] == 7, (0, 1))
    assert_close(ours, theirs[boxes], "gradient of the projection", MODEL)
    assert not theirs[~boxes].any()


@torch.no_grad()
@pytest.mark.parametrize("image", [0, 1])
def test_recorded_ids_are_generated(recording, image):
    """The published test loop goes on after a whole dialogue: six words in each recording."""
    model, recorded, batch = recording
    length = int(batch["attention_mask"][image].sum())
    tokens = model.image_tokens(batch["pixel_values"][image : image + 1])[0].flatten(0, 1)
    embeds = model.merge(batch["input_ids"][image : image + 1, :length], tokens)
    row = generate(model, embeds, torch.ones(1, length).long(), keep_states_of=[7], max_new_tokens=6)[0]
    for mode in ("plain", "mhp"):
        written = recorded[f"eval.{mode}.img{image}.output_ids"][0].tolist()
        given = recorded["in.input_ids"][image, : len(written) - 6].tolist()
        assert written == given + row.ids


@torch.no_grad()
def test_recorded_boxes_means_and_variances(recording):
    model, recorded, batch = recording
    output = model(**batch)
    seen = batch["attention_mask"].bool()
    assert_close(output.hidden, recorded["train.last_hidden_state"], "states", MODEL, where=seen[..., None])
    start = 0
    for image, count in enumerate((1, 2)):
        rows = slice(start, start + count)
        start += count
        mixed = box_published.mixed_statistics(list(output.boxes.hypotheses[rows].unbind(1)))
        for path in ("infer", "eval"):
            name = f"{path}.mhp.img{image}."
            for ours, theirs in (("boxes", "all_boxes"), ("mean", "mean_boxes"), ("variance", "uncertainty_boxes")):
                # A variance is what is left of values a thousand times its size.
                relative = 10 * MODEL if ours == "variance" else MODEL
                assert_close(mixed[ours], recorded[f"{name}{theirs}.0"], name + theirs, relative)
        language = recorded[f"infer.plain.img{image}.pred_llava_boxes.0"]
        assert_close(output.language_boxes[rows], language, "boxes of the language model", MODEL)
        if count == 1:
            # With one phrase the published mean is right, and equals ours.
            torch.testing.assert_close(output.boxes.boxes_cxcywh[rows], mixed["mean"])
