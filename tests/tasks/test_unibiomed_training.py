"""UniBiomed's training: what learns at full size, the shipped configs, and the tiny one from data to demos."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from closeness import MODEL, assert_close
from golden_files import SMALL, recording
from published_folders import recorded_unibiomed

from unimed.data.prepare.biomed_shapes import build as draw
from unimed.data.readers.unibiomed_mixture import mixture
from unimed.engine import train
from unimed.engine.config import load_config
from unimed.engine.exporting import export
from unimed.models.checkpoints import sam2, unibiomed
from unimed.models.checkpoints.reading import CheckpointError
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.starting.grounded_parts import build_on_parts
from unimed.tasks.grounding import GroundingTask

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "unibiomed").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_name_their_parts_and_sets(path):
    config = load_config(path)
    names = [entry.get("name") for entry in config.train_data.mixture]
    assert len(set(names)) == len(names) or path.stem == "_tiny"
    if path.stem.startswith("internvl"):
        kinds = Counter(name.split()[0] for name in names)
        whole = dict(vqa=1, report=1, caption=1, segmentation=47, volume=4, disease=16, region=23)
        assert kinds == (dict(segmentation=46, disease=16) if "subset" in path.stem else whole)
        assert re.search(r"InternVL2_5-\dB$", config.task.model.backbone)
        assert config.batch_size * config.accumulate * 8 == 128


def test_a_mixture_takes_what_is_there(tmp_path, capsys):
    draw(tmp_path / "Biomed")
    with pytest.raises(ValueError, match="did you mean 'disease'"):
        mixture(str(tmp_path), tasks=["diseases"])
    with pytest.raises(ValueError, match="unknown set 'LGGG'; did you mean 'LGG'"):
        mixture(str(tmp_path), without=["LGGG"])
    found = mixture(str(tmp_path / "Biomed"), skip_absent=True, prompt_style="fixed")
    assert [entry["name"] for entry in found] == ["vqa RadGenome", "report RadGenome", "caption MedTrinity"]
    assert found[0]["dataset"]["prompt_style"] == "fixed" and "90 sets are not there" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no set is left"):
        mixture(str(tmp_path / "nowhere"), skip_absent=True)


def test_what_learns_at_full_size_is_what_the_published_training_saves():
    class Words:
        unk_token_id = None

        def convert_tokens_to_ids(self, token):
            return {"<IMG_CONTEXT>": 5, "[SEG]": 6}[token]

    text = dict(
        model_type="qwen2", vocab_size=151679, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, rope_theta=1e6, rms_norm_eps=1e-6,
    )  # fmt: skip
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    vision |= dict(image_size=448, patch_size=14)
    with torch.device("meta"):
        model = GroundedMLLM(unibiomed.grounded_config({"vision_config": vision, "llm_config": text}, Words()))
        arguments = load_config(ROOT / "configs/unibiomed/internvl2_5_1b_sam2_l.py").task.to_dict()
        task = GroundingTask(**{k: v for k, v in arguments.items() if k != "type"} | {"model": model})
    ours = Counter()
    for name, parameter in task.model.named_parameters():
        if parameter.requires_grad:
            ours[_room(name)] += parameter.numel()
    published = Counter()
    for name, shape in json.loads((SMALL / "unibiomed" / "train_pth_1b_keys.json").read_text()).items():
        # The memory of SAM 2 is saved there but never learns; the position code is a buffer.
        if "memory_" not in name and "positional_encoding" not in name:
            published[_room(name)] += torch.Size(shape).numel()
    assert ours == published and ours["lora"] == 70_385_664


def _room(name):
    for room, words in {
        "lora": ("lora_",),
        "embeddings": ("embed_tokens", "lm_head"),
        "projector": ("mlp1", "multi_modal_projector"),
        "decoder": ("mask_decoder",),
        "prompts": ("prompt_encoder",),
        "projection": ("text_hidden_fcs", "seg_projection"),
    }.items():
        if any(word in name for word in words):
            return room
    return name


def test_parameters_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="begins with 'backbone.vlm.eyes'"):
        GroundingTask(model=dict(tiny=True), freeze=["backbone.vlm.eyes"])


def test_frozen_parts_take_another_number_type():
    task = GroundingTask(model=dict(tiny=True), lora=dict(r=2), frozen_dtype="bfloat16")
    kinds = {parameter.requires_grad: parameter.dtype for parameter in task.model.language_model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="an image-text folder is needed"):
        build_on_parts(tmp_path / "InternVL", tmp_path / "sam2.pt")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "sam2.pt").touch()
    with pytest.raises(CheckpointError, match="internvl_chat"):
        build_on_parts(tmp_path, tmp_path / "sam2.pt")


def test_published_parts_are_joined(tmp_path, monkeypatch):
    """The recorded model taken apart into an InternVL folder without grounding tokens and an official SAM 2 file."""
    from safetensors.torch import load_file, save_file

    source = recorded_unibiomed(tmp_path / "whole")
    tensors = load_file(source / "model.safetensors")
    folder = tmp_path / "internvl"
    folder.mkdir()
    sam = {k.split("sam2_model.")[1]: v for k, v in tensors.items() if k.startswith("grounding_encoder")}
    torch.save({"model": sam}, tmp_path / "sam2_hiera_tiny.pt")
    rest = {k: v for k, v in tensors.items() if not k.startswith(("grounding_encoder", "text_hidden"))}
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        rest[name] = rest[name][:268].clone()
    save_file(rest, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["model_type"] = "internvl_chat"
    config["llm_config"]["vocab_size"] = 268
    (folder / "config.json").write_text(json.dumps(config))
    for path in recording("unibiomed", "tokenizer").iterdir():
        content = json.loads(path.read_text())
        if path.name == "tokenizer.json":
            content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 268]
        content.pop("added_tokens_decoder", None)
        content.pop("additional_special_tokens", None)
        (folder / path.name).write_text(json.dumps(content))
    monkeypatch.setattr(sam2, "config_of", lambda official: unibiomed._tiny_mask_config(config["tiny_sam2"]))
    model = build_on_parts(folder, tmp_path / "sam2_hiera_tiny.pt", presence_head=True)
    assert model.processor.tokenizer.convert_tokens_to_ids("</vp>") == 272 and model.config.seg_token_id == 268
    table = model.get_input_embeddings().weight
    assert torch.equal(table[:268], tensors["language_model.model.embed_tokens.weight"][:268])
    assert_close(table[268:], table[:268].mean(0).expand(5, -1), relative=MODEL)
    published = unibiomed.build(source)[0]
    expected = {
        k: v for k, v in published.state_dict().items() if k.startswith(("mask_head", "backbone.vlm.model.vis"))
    }
    ours = model.state_dict()
    assert expected and all(torch.equal(ours[name], value) for name, value in expected.items())
    assert ours["presence_head.weight"].isfinite().all() and ours["seg_projection.0.weight"].abs().sum() > 0


def test_the_tiny_config_trains_exports_and_answers(tmp_path, monkeypatch, capsys):
    from unimed.commands import unibiomed as demos

    monkeypatch.chdir(tmp_path)
    tree = draw("data/biomed_shapes")
    config = ROOT / "configs" / "unibiomed" / "_tiny.py"
    options = {"max_steps": 4, "log.interval": 1, "checkpoint.interval": 4, "task.max_new_tokens": 4}
    result = train(config, "run", cfg_options=options)
    losses = [json.loads(line)["loss"] for line in open("run/train.jsonl") if '"train"' in line]
    assert result["step"] == 4 and losses[-1] < losses[0]
    export(config, "run", "exported")
    card = Path("exported/README.md").read_text()
    assert "Research use only" in card and "_tiny.py" in card
    short = ["--model_path", "exported", "--max_new_tokens", "4"]
    assert demos.segment_2d(["--val_folder", str(tree / "Shapes"), "--work-dir", "out2", *short]) == 0
    assert demos.segment_3d(["--val_folder", str(tree / "3D" / "Shapes"), "--work-dir", "out3", *short]) == 0
    for demo, data in {"disease": "Disease/Disc", "GRG": "RadGenome", "GVQA": "RadGenome"}.items():
        assert demos.answers(demo, ["--data_path", str(tree / data), "--save_dir", demo, *short]) == 0
    assert demos.answers("Medtrinity", ["--data_path", str(tree / "MedTrinity"), "--save_dir", "cap", *short]) == 0
    for region in ("box", "tokens"):
        arguments = ["--data_path", str(tree / "Shapes"), "--save_dir", region, "--region", region]
        assert demos.answers("RegionCap", [*arguments, *short]) == 0
    assert json.loads(Path("out2/results.json").read_text())["mean"] is not None
    assert "failed" in capsys.readouterr().out
