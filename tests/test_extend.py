"""The recipes of docs/extend.md, followed literally: files are written as they stand there, and used as it says."""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimed import registry
from unimed.engine import evaluate, train
from unimed.engine.exporting import export
from unimed.registry import (
    BACKBONES,
    BENCHMARKS,
    CONNECTORS,
    CONTESTANTS,
    DATASETS,
    DECODERS,
    DIALECTS,
    HEADS,
    METRICS,
    TASKS,
    WRITERS,
)

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
REGISTRIES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
#: Heading -> name that its recipe registers, and where.
RECIPES = {
    "A data set": ("TableDataset", DATASETS),
    "A metric": ("volume_error", METRICS),
    "A benchmark": ("mine/lesions", BENCHMARKS),
    "A contestant": ("threshold", CONTESTANTS),
    "A box head": ("gaussian", HEADS),
    "A mask decoder": ("film_unet", DECODERS),
    "A connector": ("attention_pooling", CONNECTORS),
    "A backbone": ("smolvlm", BACKBONES),
    "A dialect": ("brackets", DIALECTS),
    "A task": ("ModalityTask", TASKS),
    "An export format": ("csv", WRITERS),
}


def blocks(text):
    """{file name: code} of the blocks that a line with the name stands above."""
    return dict(re.findall(r"^`(\w+\.py)`:\n```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))


SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


def plugin_of(heading):
    """The file of a recipe that is no config and no script of use."""
    return [n for n in blocks(SECTIONS[heading]) if not n.endswith("_config.py") and not n.startswith("use_")]


def make_data(root):
    """`data/mine`: eight images with a bright disc each, as records and as a table."""
    for folder in ("images", "masks", "records"):
        (root / folder).mkdir(parents=True)
    rng, rows, table = np.random.default_rng(0), {"train": [], "test": []}, []
    for number in range(8):
        image = rng.integers(0, 90, (48, 64), dtype=np.uint8)
        y, x = np.mgrid[:48, :64]
        mask = (y - 20 - number) ** 2 + (x - 30) ** 2 < 81
        image[mask] += 120
        Image.fromarray(image).save(root / f"images/{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"masks/{number}.png")
        split = "train" if number < 5 else "test"
        shared = dict(image=f"images/{number}.png", patient_id=f"p{number}", modality=("CT", "MR")[number % 2])
        box = [21, 11 + number, 40, 30 + number]
        rows[split] += [
            dict(
                id=f"m{number}", task="referring", question="Please segment the lesion.",
                answer="It is the <p> lesion </p> [SEG].", regions=[dict(phrase="lesion", mask=f"masks/{number}.png")],
                **shared,
            ),
            dict(
                id=f"b{number}", task="box", question="Where is the lesion?", answer="The <p> lesion </p> is [BOX].",
                regions=[dict(phrase="lesion", box_xyxy_px=box)], **shared,
            ),
        ]  # fmt: skip
        table.append([f"images/{number}.png", f"masks/{number}.png", "lesion", f"p{number}", split])
    for split, records in rows.items():
        (root / f"records/{split}.jsonl").write_text("\n".join(map(json.dumps, records)))
    with open(root / "table.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["image", "mask", "phrase", "patient", "split"], *table])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the data and every file of the page; the registries are afterwards as they were."""
    folder = tmp_path_factory.mktemp("extend")
    make_data(folder / "data" / "mine")
    for text in (PAGE.split("\n## ")[0], *SECTIONS.values()):
        for name, code in blocks(text).items():
            assert not (folder / name).exists(), f"two files are called {name}"
            (folder / name).write_text(code)
    kept = [(one, dict(one.module_dict)) for one in REGISTRIES]
    before, path, modules = os.getcwd(), list(sys.path), set(sys.modules)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.path[:] = path
    for one, entries in kept:
        # The package's own modules may have been imported meanwhile, and are not imported twice.
        own = {k: v for k, v in one.module_dict.items() if str(getattr(v, "__module__", "")).startswith("unimed")}
        one.module_dict.clear()
        one.module_dict.update(own | entries)
    for name in set(sys.modules) - modules:
        if not name.startswith("unimed") and str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(config):
    """Train, test and export as a config says; the test's numbers."""
    work = Path("work_dirs") / Path(config).stem
    result = train(config, work_dir=work)
    assert result["step"] == 2 and np.isfinite(result["loss"])
    scores = evaluate(config, checkpoint=work)
    export(config, work, work / "exported")
    return scores, work / "exported"


def test_the_page_has_every_recipe():
    assert list(SECTIONS) != [] and set(SECTIONS) == set(RECIPES)
    touched = {heading: len(plugin_of(heading)) for heading in RECIPES}
    print("files touched:", ", ".join(f"{heading.lower()} {count}" for heading, count in touched.items()))
    assert set(touched.values()) == {1}


def test_a_data_set(home):
    from unimed.commands.cli import main

    scores, _ = run("table_config.py")
    assert "dice_mean_over_targets" in scores["summary"]
    assert main(["check-data", "table_config.py"]) == 0


def test_a_metric(home, monkeypatch, capsys):
    _use(home, "volume_metric", monkeypatch)
    assert "volume_error" in capsys.readouterr().out


def test_a_benchmark(home, monkeypatch, capsys):
    _use(home, "lesion_benchmark", monkeypatch)
    assert "dice" in capsys.readouterr().out
    scores, _ = run("lesion_config.py")
    assert 0 <= scores["summary"]["dice/mask"] <= 1


def test_a_contestant(home, monkeypatch, capsys):
    _use(home, "threshold_contestant", monkeypatch)
    assert "Leaks" in capsys.readouterr().out


def test_a_box_head(home):
    import unimed

    _, exported = run("gaussian_config.py")
    head = unimed.load(exported, device="cpu").box_head
    states = torch.randn(5, head.layers[0].in_features)
    assert (head(states).std > 0).all() and type(head).__name__ == "GaussianBoxHead"
    from unimed.losses.box import box_loss

    target = torch.tensor([[0.1, 0.2, 0.5, 0.6]]).expand(5, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = sum(box_loss(head(states), target, {"nll_weight": 0.1}).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    with pytest.raises(ValueError, match="did you mean 'nll_weight'"):
        box_loss(head(states), target, {"nll_wait": 1})


def test_a_mask_decoder(home):
    import unimed

    _, exported = run("unet_config.py")
    model = unimed.load(exported, device="cpu")
    assert type(model.mask_head).__name__ == "FilmUNet"
    assert model.predict("data/mine/images/0.png", "Please segment the lesion.", max_new_tokens=4) is not None


def test_a_connector(home):
    import unimed

    _, exported = run("pooling_config.py")
    assert type(unimed.load(exported, device="cpu").connector).__name__ == "AttentionPooling"


def test_a_dialect(home):
    import unimed
    from unimed.data.readers.records import RecordDataset

    _, exported = run("bracket_config.py")
    processor = unimed.load(exported, device="cpu").processor
    sample = RecordDataset("data/mine")[0]
    written = processor.write(sample)
    assert "[SEG]" not in written.conversation[1][1] and written.conversation[0][1].startswith(("Find ", "Please"))
    ((_, _, boxes),) = processor.dialect.read_boxes(written.conversation[1][1], sample.images[0].shape[:2])
    mask = sample.regions[0].mask
    assert boxes[0][0] == pytest.approx(np.flatnonzero(mask.any(0))[0] / mask.shape[1], abs=2e-3)


def test_a_task(home):
    scores, exported = run("modality_config.py")
    assert 0 <= scores["summary"]["accuracy"] <= 1 and (exported / "model.safetensors").is_file()


def test_a_backbone(home, monkeypatch):
    import unimed
    from unimed.models.checkpoints import sam2, unibiomed

    publish_smolvlm(home / "pretrained", monkeypatch, sam2, unibiomed)
    _use(home, "smolvlm_backbone", monkeypatch)
    model = unimed.load("work_dirs/grounded_smolvlm", device="cpu")
    assert type(model.backbone).__name__ == "SmolVlmBackbone"
    # The same image tokens as transformers' own road from pixels to the language model.
    pixels = torch.randn(1, 3, 32, 32)
    theirs = model.backbone.vlm.model.get_image_features(pixels[None]).pooler_output
    assert torch.allclose(model.backbone.image_tokens(pixels), torch.cat(list(theirs)).reshape(1, 4, -1), atol=1e-5)


def test_an_export_format(home, monkeypatch):
    _use(home, "csv_writer", monkeypatch)


def _use(home, plugin, monkeypatch):
    """Run the script of a recipe as a user would, with the plug-in named in the environment."""
    monkeypatch.setenv(registry.PLUGINS, plugin)
    monkeypatch.setattr(registry, "_plugins_searched", False)
    monkeypatch.syspath_prepend(str(home))
    registry.import_plugins()
    runpy.run_path(str(home / f"use_{plugin}.py"), run_name="__main__")


def publish_smolvlm(folder, monkeypatch, sam2, unibiomed):
    """`pretrained/`: a random SmolVLM of a few thousand parameters with its tokenizer, and an official SAM 2 file."""
    from published_folders import TINY_SAM2, publish
    from transformers import AutoModelForImageTextToText, SmolVLMConfig

    from unimed.models.starting.grounded_small import train_tokenizer

    tokenizer = train_tokenizer(["Please segment the lesion."], 400)
    tokenizer.add_tokens(
        ["<fake_token_around_image>", "<global-img>", "<image>", "<|im_start|>", "<end_of_utterance>"],
        special_tokens=True,
    )
    config = SmolVLMConfig(
        vision_config=dict(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
            patch_size=8,
        ),
        text_config=dict(
            model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
        ),
        scale_factor=2, image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder / "SmolVLM")
    tokenizer.save_pretrained(folder / "SmolVLM")
    _, tensors = publish(folder / "published")
    official = {n.removeprefix(unibiomed.SAM): t for n, t in tensors.items() if n.startswith(unibiomed.SAM)}
    torch.save({"model": official}, folder / "sam2_hiera_tiny.pt")
    monkeypatch.setattr(sam2, "config_of", lambda _: unibiomed._tiny_mask_config(TINY_SAM2))


def test_inside_the_package_the_same_files_are_found_by_themselves(home):
    """A folder laid over each package named in the table: no plug-in is named, every name is known."""
    folders = dict(re.findall(r"^\| (?:an? [^|]*) \| `(\w+)`[^|]*\| `(unimed/[\w/]+)/` \|", PAGE, flags=re.MULTILINE))
    overlay, wanted = home / "overlay", []
    for heading, (name, of) in RECIPES.items():
        key = next(key for key, value in vars(registry).items() if value is of)
        package = folders[key].replace("/", ".")
        target = overlay / package
        target.mkdir(parents=True, exist_ok=True)
        (plugin,) = plugin_of(heading)
        (target / plugin).write_text((home / plugin).read_text())
        wanted.append((key, name, package, str(target)))
    code = (
        "import importlib, json, sys; from unimed import registry\n"
        f"wanted = json.loads({json.dumps(json.dumps(wanted))!s})\n"
        "for key, name, package, folder in wanted: importlib.import_module(package).__path__.append(folder)\n"
        "for key, name, package, folder in wanted: registry.look_up(name, getattr(registry, key))\n"
        "print(len(wanted), 'found')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != registry.PLUGINS}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=overlay, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{len(wanted)} found" in done.stdout
