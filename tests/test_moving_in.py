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
        for line in lines:
            status = run(re.sub(r"configs/\w+/[a-z]\w*\.py", self.tiny, line), self.quick)
            assert status == 0, (line, status, capsys.readouterr())
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
        for setting in self.found(SETTINGS, lambda one: "=" in one):
            key, _, value = setting.partition("=")
            held = load_config(self.config, options=parse_options([setting]))
            for part in key.split("."):
                held = held[part]
                assert plain is None or part in plain, f"{setting}: {self.config} has no {part}"
                plain = plain[part] if isinstance(plain[part], dict) else None
            assert held == parse_options([setting])[key], setting
            plain = load_config(self.config)

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
SHORT = ["device=cpu", "max_steps=1", "batch_size=1", "accumulate=1", "num_workers=0"]


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
        "tools/test.py": [*moved, "task.max_new_tokens=2", f"test_data={SHAPES}"],
        "benchmark": ["--limit", "1", "--max-new-tokens", "4", "--resamples", "5", "--worst", "0", "--no-leak-check"],
    }  # fmt: skip
    ours = Page("unibiomed", "configs/unibiomed/internvl2_5_1b_sam2_l.py", "configs/unibiomed/_tiny.py", quick)
    ours.settings()
    ours.layouts()
    assert ours.commands(capsys) == 19
    found = ours.snippets(image=image(here / "a.png"), np=np)
    assert found["masks"][0][0].shape == (60, 80) and len(found["volume"]["prediction_masks"][0]) == 2
    assert Path("out/GRG.txt").is_file() and Path("exports/moved/model.safetensors").is_file()
