import json

import pytest
import torch
from closeness import MODEL, assert_close
from golden_files import SMALL
from published_folders import SIZES, VIT, full_size_names, names_of, publish, tokenizer_with, write_shards

import unimed
from unimed.models.checkpoints import unibiomed
from unimed.models.checkpoints.reading import CheckpointError
from unimed.models.checkpoints.sam2 import check_names
from unimed.models.checkpoints.unibiomed_training import merge_training
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.starting.grounded_parts import build_on_parts


class Words:
    unk_token_id = None

    def convert_tokens_to_ids(self, token):
        return {"<IMG_CONTEXT>": 5, "[SEG]": 6}[token]


@pytest.mark.parametrize("size", SIZES)
def test_every_tensor_of_every_published_size_finds_its_place(size):
    tower, text = SIZES[size]
    vision = VIT[tower] | dict(image_size=448, patch_size=14)
    names = full_size_names(size)
    if size in ("1B", "8B"):
        recorded = names_of({"1B": "1b_qwen2", "8B": "8b_internlm2"}[size])
        assert names == recorded, "spelled from sizes, the list is the recorded one"
    published = {name: torch.empty(shape, device="meta") for name, shape in names.items()}
    with torch.device("meta"):
        model = GroundedMLLM(unibiomed.grounded_config({"vision_config": vision, "llm_config": text}, Words()))
    report = check_names(model, unibiomed.convert_state_dict(published, text), "unibiomed", size, "")
    report.check()
    print(f"{size}: {len(names)} names, 0 missing, 0 unexpected")


def test_every_tensor_of_the_full_size_training_file_finds_its_place():
    def meta(shapes):
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    published = names_of("1b_qwen2")
    base = {n: s for n, s in published.items() if not n.startswith(("grounding_encoder", "text_hidden_fcs"))}
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        base[name] = [151674, 896]  # InternVL2.5 does not know the grounding tokens
    sam = json.loads((SMALL / "unibiomed" / "sam2_hiera_large_pt_keys.json").read_text())
    base |= {unibiomed.SAM + name: shape for name, shape in sam.get("keys", sam).items()}
    trained = json.loads((SMALL / "unibiomed" / "train_pth_1b_keys.json").read_text())
    merged, notes = merge_training(meta(trained), meta(base), 2.0, "iter_1.pth")
    assert {name: list(tensor.shape) for name, tensor in merged.items()} == published
    assert "adapters" in notes[0] and len(trained) == 642


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "published"
    return folder, *publish(folder, shards=3)


@pytest.mark.parametrize("kind", ["qwen2", "internlm2"])
def test_a_published_folder_in_shards_is_the_model_it_holds(kind, base, tmp_path):
    folder, model = base[:2]
    if kind == "internlm2":
        folder = tmp_path / "published"
        model, tensors = publish(folder, kind)
        for file in folder.glob("model*"):
            file.unlink()
        write_shards(folder, tensors, 2, "bin")
    report = unibiomed.convert(folder, tmp_path / "ours")
    assert (report.missing, report.unexpected, report.shapes) == ([], [], [])
    again = unimed.load(tmp_path / "ours", device="cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.processor.tokens_per_tile == 4
    assert again.predict(torch.zeros(20, 20, 3).byte().numpy(), "what", max_new_tokens=2).text is not None


def training_file(tensors, path):
    """What a run would save: adapters, embeddings, projector and the SAM 2 parts that learn."""
    torch.manual_seed(1)
    trained, expected = {}, dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith("language_model.model.layers") and name.endswith("proj.weight"):
            stem = (
                "mllm.model.language_model.base_model.model." + name.removeprefix("language_model.")[: -len(".weight")]
            )
            a, b = torch.randn(3, tensor.shape[1]), torch.randn(tensor.shape[0], 3)
            trained |= {f"{stem}.lora_A.default.weight": a, f"{stem}.lora_B.default.weight": b}
            expected[name] = tensor + 2 * b @ a
        elif name.startswith("language_model.") and name.endswith(("embed_tokens.weight", "lm_head.weight")):
            changed = tensor + 1
            trained["mllm.model.language_model.base_model.model." + name.removeprefix("language_model.")] = changed
            expected[name] = changed
        elif name.startswith(("mlp1.", "text_hidden_fcs.")) or "memory_encoder" in name or "sam_mask_decoder" in name:
            spelled = ("mllm.model." if name.startswith("mlp1") else "") + name.replace(".g_weight", ".gamma")
            trained[spelled] = expected[name] = tensor + 1
    torch.save({"state_dict": trained, "meta": {"epoch": 1}}, path)
    return trained, expected


@pytest.mark.parametrize("form", ["file", "zero"])
def test_a_training_file_becomes_the_model_it_trained(form, base, tmp_path):
    folder, _, tensors = base
    source = tmp_path / "iter_10.pth"
    trained, expected = training_file(tensors, source)
    if form == "zero":
        source = tmp_path / "zero.pth"
        source.mkdir()
        torch.save({"module": trained, "param_shapes": [{"a": torch.Size([1])}]}, source / "mp_rank_00_model_states.pt")
    model, report = unibiomed.build(source, base=folder)
    wanted = unibiomed.convert_state_dict(expected, json.loads((folder / "config.json").read_text())["llm_config"])
    for name, tensor in model.state_dict().items():
        assert_close(tensor, wanted[name], relative=MODEL)
    assert "14 adapters" in report.notes[0]


def test_what_is_wrong_with_a_training_file_is_named(base, tmp_path):
    folder, _, tensors = base
    trained, _ = training_file(tensors, tmp_path / "a.pth")

    def refused(change, words, **options):
        torch.save(change(dict(trained)), tmp_path / "b.pth")
        with pytest.raises(CheckpointError, match=words):
            unibiomed.build(tmp_path / "b.pth", **options)

    half = next(name for name in trained if ".lora_B" in name)
    refused(lambda t: t, "--base")
    refused(lambda t: t | {"mllm.model.odd.weight": torch.ones(1)}, "mllm.model.odd.weight", base=folder)
    refused(lambda t: {k: v for k, v in t.items() if k != half}, "layers.0.*lora_B", base=folder)
    refused(lambda t: t | {half: torch.ones(7, 3)}, "of another shape.*layers.0", base=folder)
    refused(lambda t: {"layer.weight": torch.ones(1)}, "neither.*layer.weight", base=folder)
    refused(lambda t: t, "InternVL 2.5", base=tmp_path)


def test_every_wrong_tensor_of_a_folder_is_named(tmp_path):
    from tools_convert import convert_tool

    folder = tmp_path / "published"
    _, tensors = publish(folder, extra=[f"foreign.{i}" for i in range(60)])
    with pytest.raises(CheckpointError, match="60 unexpected .*foreign.0.* and 20 more") as caught:
        unibiomed.convert(folder, tmp_path / "ours")
    assert len(caught.value.report.unexpected) == 60 and not (tmp_path / "ours").exists()
    code = convert_tool("--from", "unibiomed", folder, tmp_path / "ours", "--report", tmp_path / "report.json")
    assert code == 1 and len(json.loads((tmp_path / "report.json").read_text())["unexpected"]) == 60
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="model-00001"):
        unibiomed.convert(folder, tmp_path / "ours")


def test_a_model_starts_from_internvl_and_sam2(base, tmp_path):
    folder, _, tensors = base
    internvl = tmp_path / "internvl"
    internvl.mkdir()
    bare = tokenizer_with(added=())
    bare.save_pretrained(internvl)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"], config["llm_config"]["vocab_size"] = "internvl_chat", len(bare)
    (internvl / "config.json").write_text(json.dumps(config))
    parts = {n: t for n, t in tensors.items() if not n.startswith(("grounding_encoder.", "text_hidden_fcs."))}
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        parts[name] = parts[name][: len(bare)]
    write_shards(internvl, parts, 1)
    sam = {n.removeprefix(unibiomed.SAM): t for n, t in tensors.items() if n.startswith(unibiomed.SAM)}
    torch.save({"model": sam}, tmp_path / "sam2_hiera_tiny.pt")
    model = build_on_parts(internvl, tmp_path / "sam2_hiera_tiny.pt", presence_head=True)
    assert len(model.processor.tokenizer) == len(bare) + 5 == 273
    rows = model.get_input_embeddings().weight
    assert torch.equal(rows[: len(bare)], parts["language_model.model.embed_tokens.weight"])
    assert_close(rows[-1], rows[: len(bare)].mean(0), relative=MODEL)
    assert model.presence_head is not None
    again = build_on_parts(internvl, tmp_path / "sam2_hiera_tiny.pt")
    assert torch.equal(model.seg_projection[0].weight, again.seg_projection[0].weight)


@pytest.mark.parametrize("trains_embeddings", [True, False])
def test_a_training_file_on_internvl_makes_room_for_its_tokens(trains_embeddings, tmp_path):
    """The base knows none of the grounding tokens: tables and configuration grow, and the answer is that of the run."""
    folder = tmp_path / "base"
    _, tensors = publish(folder)
    trained, _ = training_file(tensors, tmp_path / "iter_10.pth")
    tokenizer = tokenizer_with(())
    rows = len(tokenizer)
    if not trains_embeddings:
        trained = {n: t for n, t in trained.items() if not n.endswith(("embed_tokens.weight", "lm_head.weight"))}
        torch.save({"state_dict": trained}, tmp_path / "iter_10.pth")
    published = json.loads((folder / "config.json").read_text())
    published |= {"model_type": "internvl_chat", "llm_config": published["llm_config"] | {"vocab_size": rows}}
    (folder / "config.json").write_text(json.dumps(published))
    for file in [*folder.glob("*token*"), *folder.glob("vocab*"), *folder.glob("merges*"), *folder.glob("*.jinja")]:
        file.unlink()
    tokenizer.save_pretrained(folder)
    base = {n: t for n, t in tensors.items() if not n.startswith((unibiomed.SAM, "text_hidden_fcs."))}
    base = {n: t[:rows] if n in unibiomed.EMBEDDINGS else t for n, t in base.items()}
    for file in folder.glob("model*"):
        file.unlink()
    write_shards(folder, base, 1)
    sam = {n.removeprefix(unibiomed.SAM): t for n, t in tensors.items() if n.startswith(unibiomed.SAM)}
    torch.save({"model": sam}, tmp_path / "sam2_hiera_tiny.pt")
    report = unibiomed.convert(
        tmp_path / "iter_10.pth", tmp_path / "ours", base=folder, sam2=tmp_path / "sam2_hiera_tiny.pt"
    )
    model = unimed.load(tmp_path / "ours", device="cpu")
    table = model.get_input_embeddings().weight
    assert len(table) == len(model.processor.tokenizer) == rows + 5
    assert model.config.seg_token_id == rows
    old = tensors["language_model.model.embed_tokens.weight"]
    if trains_embeddings:
        assert torch.equal(table, old + 1) and not any("mean" in note for note in report.notes)
    else:
        assert torch.allclose(table[rows:], old[:rows].mean(0).expand(5, -1), atol=1e-6)
        assert sum("mean" in note for note in report.notes) == 2
