"""Pages for users of the published systems: every command, snippet, setting and layout of theirs, run on tiny data."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from page_commands import ROOT, code, run, tables
from PIL import Image

from unimed.engine.config import load_config, parse_options
from unimed.registry import DATASETS

COMMANDS, SNIPPETS, SETTINGS, LAYOUTS = "what you type", "what you write", "key here", "what reads it"


def page(system):
    return (ROOT / "docs" / "moving_in" / f"{system}.md").read_text(encoding="utf-8")


def image(path, size=(80, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    made.save(path)
    return made


def sample(folder):
    """`data/sample` in miniature: a record of every task in each split."""
    from data.tiny_sets import records

    rows = (records(folder) / "records" / "train.jsonl").read_text()
    for split in ("val", "test"):
        changed = rows.replace('"patient_id": "p"', f'"patient_id": "{split}"').replace('"train"', f'"{split}"')
        (folder / "records" / f"{split}.jsonl").write_text(changed)


class Page:
    """A page, and how its lines are run on tiny data: `config` stands for `tiny`, `quick` makes commands short."""

    def __init__(self, system, config, tiny, quick):
        self.text, self.config, self.tiny, self.quick = page(system), config, tiny, quick

    def found(self, header, runs):
        """What is to run of each row of the tables of a kind; a row without anything is written by another one."""
        rows = [(cell, [one for one in code(cell) if runs(one)]) for _, cell in tables(self.text, header)]
        assert rows, header
        for cell, lines in rows:
            assert lines or cell.startswith("written "), f"nothing of this row can be run: {cell}"
        return [line for _, lines in rows for line in lines]

    def commands(self, capsys):
        lines = self.found(COMMANDS, lambda one: one.split()[0] in ("python", "bash", "unimed") and " " in one)
        done = set()
        for line in lines:
            # Shipped configs of one system are one small config here, which is trained once.
            short = re.sub(r"configs/\w+/[a-z]\w*\.py", self.tiny, line)
            if short in done:
                continue
            done.add(short)
            status = run(short, self.quick)
            # Published prompts are not ours to ship: those of the test are told from them, with the exit code.
            assert status == ("import-prompts" in line), (line, status, capsys.readouterr())
        return len(lines)

    def snippets(self, **names):
        for line in self.found(SNIPPETS, lambda one: True):
            try:
                exec(compile(line, "page", "exec"), names)  # noqa: S102
            except Exception as error:
                raise AssertionError(f"{line}: {error!r}") from error
        return names

    def settings(self):
        plain = load_config(self.config)
        asked = [parse_options([one]) for one in self.found(SETTINGS, lambda one: "=" in one)]
        while asked:  # those that do not contradict one another at once
            together, later = {}, []
            for one in asked:
                (key,) = one
                clash = any(key == k or key.startswith(f"{k}.") or k.startswith(f"{key}.") for k in together)
                later.append(one) if clash else together.update(one)
            held = load_config(self.config, options=together)
            for key, value in together.items():
                found, known = held, plain
                for part in key.split("."):
                    assert not isinstance(known, dict) or part in known, f"{key}: {self.config} has no {part}"
                    found, known = found[part], known[part] if isinstance(known, dict) else None
                assert found == value, key
            asked = later

    def layouts(self):
        for one in self.found(LAYOUTS, lambda one: one.startswith("dict(")):
            dataset = DATASETS.build(eval(one))  # noqa: S307
            assert len(dataset) and dataset[0].conversation is not None, one


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "pretrained").mkdir()
    return tmp_path


SHAPES = "dict(type='BiomedDataset',root='data/Biomed/Shapes',split='test')"
SHORT = ["device=cpu", "max_steps=1", "batch_size=1", "accumulate=1", "num_workers=0", "log.curves=False"]


def test_unibiomed(here, capsys):
    from models.checkpoints.test_unibiomed_files import training_file
    from published_folders import publish

    from unimed.data.prepare.biomed_shapes import build

    build(here / "data" / "Biomed")
    os.symlink(here / "data" / "Biomed", here / "data" / "biomed_shapes")
    _, tensors = publish(here / "pretrained" / "UniBiomed", say=["[SEG]", ".", "<|im_end|>"])
    training_file(tensors, here / "iter_10000.pth")
    short = ["--max_new_tokens", "2", "--overlays", "0"]
    demos = {f"demo/demo_{name}.py": short for name in ("seg2D", "seg3D", "GRG", "GVQA", "disease", "Medtrinity",
                                                        "RegionCap")}  # fmt: skip
    moved = ["--work-dir", "work_dirs/moved", "--cfg-options", *SHORT]
    quick = {
        "tools/train.py": moved, **demos,
        "tools/test.py": [*moved, "task.max_new_tokens=2", "task.honesty_samples=1", f"test_data={SHAPES}"],
        "benchmark": ["--limit", "1", "--max-new-tokens", "4", "--resamples", "5", "--worst", "0", "--no-leak-check"],
    }  # fmt: skip
    ours = Page("unibiomed", "configs/unibiomed/internvl2_5_1b_sam2_l.py", "configs/unibiomed/_tiny.py", quick)
    ours.settings()
    ours.layouts()
    assert ours.commands(capsys) == 19
    found = ours.snippets(image=image(here / "a.png"), np=np)
    assert found["masks"][0][0].shape == (60, 80) and len(found["volume"]["prediction_masks"][0]) == 2
    assert Path("out/GRG.txt").is_file() and Path("exports/moved/model.safetensors").is_file()


def test_umedground(here, capsys):
    import torch
    from data.readers import test_umedground as grounding
    from models.checkpoints import test_umedground_layout as layout
    from models.heads import test_sam
    from transformers import SamModel

    base, clip = here / "pretrained" / "llava-llama-2-13b", here / "pretrained" / "clip-vit-large-patch14"
    layout.write_base(base)
    layout.write_clip(clip)
    (here / "runs" / "mine").mkdir(parents=True)
    torch.save(layout.random_state(), here / "runs" / "mine" / "pytorch_model.bin")
    merged = layout.random_state("merged_saved_keys_without_vision_tower")
    for name, state, tokens in (
        ("runs/merged", merged, ["[BOX]", "<im_start>", "<im_end>"]),
        ("pretrained/LISA-7B-v1", layout.lisa_state(), ["[SEG]", "<im_start>", "<im_end>"]),
        ("pretrained/llava-v1", layout.llava_state(), []),
    ):
        (here / name).mkdir(parents=True)
        layout.shards(here / name, state, base, tokens=tokens)
    torch.save(
        test_sam.official_names(SamModel(test_sam.tiny_sam_config()).state_dict()),
        here / "pretrained" / "medsam_vit_b.pth",
    )
    data = here / "data" / "ReasonGro" / "MS_CXR"
    (data / "images").mkdir(parents=True)
    grounding.root.__wrapped__(data / "images")
    grounding.mrg(data, "MS_CXR_S_train.pth")
    others = [grounding.PATH.format(n=number) for number in (3, 4)]
    grounding.mrg(data, "MS_CXR_S_test.pth", image_paths=others)
    sample(here / "data" / "sample")
    image(here / "chest.png")
    short = ["--work-dir", "work_dirs/moved", "--cfg-options", "val_data=None", *SHORT]
    asked = ["--limit", "1", "--max-new-tokens", "2", "--resamples", "5", "--worst", "0", "--no-leak-check"]
    quick = {
        "tools/train.py": short, "tools/test.py": [*short, "task.max_new_tokens=2"], "benchmark": asked,
        "demo/demo_mrg.py": ["--max-new-tokens", "2"],
    }  # fmt: skip
    ours = Page("umedground", "configs/umedground/mrg_ms_cxr.py", "configs/umedground/_tiny.py", quick)
    ours.settings()
    assert ours.commands(capsys) == 12
    assert ours.snippets()["prediction"].text is not None
    ours.layouts()


def test_biomedparse(here, capsys):
    from data.readers import test_biomedparse as png_sets
    from data.readers import test_biomedparse_volumes as volumes
    from models.checkpoints import test_biomedparse_layout as layout

    for version in (1, 2):
        layout.write_published(here, version)
    volumes.save(here / "volumes")
    for number, split in enumerate(("train", "val", "test")):
        values = np.random.default_rng(number).integers(0, 255, (3, 6, 8), dtype=np.uint8)
        volumes.save(here / "data" / "my_volumes" / split, f"CT_{split}", imgs=values)
    png_sets.folder.__wrapped__(here / "data" / "BiomedParse")
    for path in ("p1_CT_abdomen.png", "images/p2_CT_abdomen.png"):
        image(here / path)
    sample(here / "data" / "sample")
    moved = ["--work-dir", "work_dirs/moved", "--cfg-options", "val_data=None", *SHORT]
    asked = ["--limit", "1", "--resamples", "5", "--worst", "0", "--no-leak-check", "--no-baselines"]
    quick = {"tools/train.py": moved, "benchmark": asked, "tools/score_volumes.py": ["--no-surfaces"]}
    ours = Page("biomedparse", "configs/biomedparse/finetune.py", "configs/biomedparse/_tiny.py", quick)
    ours.settings()
    assert ours.commands(capsys) == 13
    found = ours.snippets()
    assert found["segs"].shape == (3, 6, 8) and len(found["there"]) == 2
    ours.layouts()


def test_uni_med(here, capsys, monkeypatch):
    import functools

    from data.readers import test_uni_med as sets
    from evaluation.harness import layouts
    from models.checkpoints import test_uni_med_layout as layout
    from models.checkpoints import test_uni_med_yaml as yaml
    from models.uni_med.recorded import CONNECTOR

    from unimed.evaluation.benchmarks.uni_med import SETS
    from unimed.models.checkpoints import uni_med

    _, eva, llama = layout.published.__wrapped__(here)
    eva.rename(here / "pretrained" / "eva_vit_g.pth")
    llama.rename(here / "pretrained" / "Llama-2-7b-chat-hf")
    # The sizes of an encoder stand in no file; those of the recordings differ from EVA-ViT-g.
    monkeypatch.setattr(uni_med, "convert", functools.partial(uni_med.convert, vision=layout.SIZES))
    (here / "data" / "uni_med").mkdir(parents=True)
    sets.root.__wrapped__(here / "data" / "uni_med")
    for name in SETS:
        layouts.maker_of(f"uni_med/{name}")(here / "data" / "bench" / name)
    sample(here / "data" / "sample")
    image(here / "chest.png")
    (here / "train_configs").mkdir()
    text = yaml.YAML.replace("/models/llama", "pretrained/Llama-2-7b-chat-hf").replace("amp: True", "amp: False")
    text = text.replace("image_size: 224", "image_size: 112").replace("task_token_c: 5632", "task_token_c: 24")
    (here / "train_configs" / "uni_med.yaml").write_text(text)
    tiny = {"patch_size": 14, **{key: layout.SIZES[key] for key in layout.SIZES}, "image_size": 112}
    medqa = "train_data=dict(type='MedQADataset',root='data/uni_med/MedQA')"
    parts = ["--cfg-options", f"task.model.vision={tiny}".replace(" ", ""), medqa, "task.model.max_prompt_tokens=200"]
    assert CONNECTOR["num_experts"] == 5
    moved = ["--work-dir", "work_dirs/moved", "--cfg-options", "val_data=None", *SHORT]
    asked = ["--limit", "1", "--max-new-tokens", "2", "--resamples", "5", "--worst", "0", "--no-leak-check",
             "--no-baselines", "--no-frame-test"]  # fmt: skip
    quick = {
        "--cfg-path": [*parts, *SHORT], "configs_mine/uni_med.py": ["--work-dir", "work_dirs/several", *parts, *SHORT],
        "configs/uni_med/_tiny.py": [*moved, "task.max_new_tokens=2"], "benchmark": asked,
    }  # fmt: skip
    ours = Page("uni_med", "configs/uni_med/published.py", "configs/uni_med/_tiny.py", quick)
    ours.settings()
    ours.layouts()
    assert ours.commands(capsys) == 17
    assert ours.snippets()["text"] is not None


def test_unimed_clip(here, capsys):
    import shutil

    import torch
    from data.prepare import test_unimed_clip as sources
    from data.readers import test_zero_shot_sets as zero_shot
    from evaluation.harness import layouts
    from models.clip.recorded import FOLDER

    recorded = FOLDER / "model"
    shutil.copy(recorded / "train_checkpoint.pt", here / "pretrained" / "unimed_clip_vit_b16.pt")
    shutil.copy(recorded / "open_clip_config.json", here / "pretrained")
    for name in ("text_encoder", "BiomedBERT-base"):
        shutil.copytree(recorded / "text_encoder", here / "pretrained" / name)
    (here / "raw").mkdir()
    for name in ("chexpert", "openi"):
        sources.make_inputs(name, here / "raw" / name)
    layouts.maker_of("zero_shot/acl_mri")(here / "sets" / "acl_mri")
    zero_shot.write_constants(here / "constants.py")
    sample(here / "data" / "sample")
    image(here / "chest.png")
    moved = ["--work-dir", "work_dirs/moved", "--cfg-options", "val_data=None", *SHORT[:2], "batch_size=2"]
    asked = ["--limit", "2", "--resamples", "5", "--worst", "0", "--no-leak-check", "--no-baselines"]
    quick = {
        "tools/train.py": moved,
        "benchmark": asked,
        "zero-shot": ["--resamples", "5"],
        "retrieval": ["--resamples", "5"],
    }
    ours = Page("unimed_clip", "configs/unimed_clip/vit_b16.py", "configs/unimed_clip/_tiny.py", quick)
    ours.settings()
    assert ours.commands(capsys) == 12
    with torch.no_grad():
        found = ours.snippets(unit=lambda features: torch.nn.functional.normalize(features, dim=-1))
    assert found["texts"].shape[0] == 2 and abs(float(found["probabilities"].sum()) - 1) < 1e-5
    assert found["train_transform"](here / "chest.png").dtype == torch.uint8
    ours.layouts()
