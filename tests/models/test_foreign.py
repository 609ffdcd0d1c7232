"""No code of a folder runs, whoever opens it and whatever is typed; names stay inside the folder."""

import ast
import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import tiny_model

sys.path.insert(0, str(Path(__file__).parent))
import hostile
from test_weights import FAMILIES

import unimed
from unimed.models import foreign
from unimed.models.auto import LoadError
from unimed.models.backbones.language import read_language_model
from unimed.models.weights import ATTENTION

ROOT = Path(__file__).parent.parent.parent
#: Calls that open a folder by a foreign class: in the door alone.
OPENERS = {"from_pretrained", "load_checkpoint", "get_tokenizer", "snapshot_download", "hf_hub_download"}


@pytest.fixture
def answers(monkeypatch):
    """Whoever asks is told yes, and counted."""
    asked = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "y")
    return asked


@pytest.mark.parametrize("name", [*FAMILIES, "unibiomed on qwen2", "unibiomed on internlm2"])
def test_no_code_runs(name, tmp_path, answers, monkeypatch):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    results, ways = hostile.outcomes(tmp_path, {name})
    assert ways > 5 and not answers
    assert not (tmp_path / "mark").exists(), (tmp_path / "mark").read_text()
    assert results == {name: "opened"}
    for config in (tmp_path / "cache").rglob("*config.json"):
        assert "evil" not in config.read_text() and "owner/kernel" not in config.read_text()


def test_no_code_runs_in_parts_of_other_libraries(tmp_path, answers):
    """A language model, and a tokenizer that is code alone."""
    from transformers import AutoModelForCausalLM

    model = tiny_model()
    folder = tmp_path / "llm"
    AutoModelForCausalLM.from_config(model.config.backbone_config).save_pretrained(folder)
    model.processor.tokenizer.save_pretrained(folder)
    hostile.poison(folder, tmp_path / "mark")
    language_model, tokenizer = read_language_model(folder)
    assert language_model.config._attn_implementation in ATTENTION and len(tokenizer) > 100
    with pytest.raises(ValueError, match="ignore_me"):
        foreign.model(AutoModelForCausalLM, folder, ignore_me=1)
    with pytest.raises(ValueError, match="owner/kernel"):
        foreign.model(AutoModelForCausalLM, folder, attn_implementation="owner/kernel")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(foreign.ForeignError, match="Python code"):
        foreign.tokenizer(folder)
    # Rendering a template is transformers' business, in its sandbox.
    with pytest.raises(Exception, match="unsafe|not allowed|security|has no attribute|access"):
        tokenizer.chat_template = hostile.TEMPLATE
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert not (tmp_path / "mark").exists() and not answers


@pytest.mark.parametrize("typed", [None, "y\n" * 1000])
def test_what_is_typed_changes_nothing(typed, tmp_path):
    """In a process of its own, with standard input closed and with somebody who says yes to everything."""
    tiny_model().save_pretrained(tmp_path / "model")
    hostile.poison(tmp_path / "model", tmp_path / "mark")
    code = (
        f"import unimed; m = unimed.load({str(tmp_path / 'model')!r}, device='cpu'); print(len(m.processor.tokenizer))"
    )
    options = {"stdin": subprocess.DEVNULL} if typed is None else {"input": typed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, **options)
    assert done.returncode == 0 and int(done.stdout) > 100, done.stderr[-500:]
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["/etc", "../elsewhere", "a/../b", "tests", "hf-hub:a/b", "local-dir:x", "", None, 3])
def test_a_configuration_names_no_place_of_this_disk(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(foreign.ForeignError):
        foreign.hub_name(name, "hf_tokenizer_name")
    config = {"embed_dim": 8, "vision_cfg": {"timm_model_name": f"local-dir:{name}"}, "text_cfg": {}}
    with pytest.raises(foreign.ForeignError, match="timm_model_name"):
        foreign.towers_configuration(config, None)


def test_configurations_are_cleaned_at_any_depth():
    values = {"a": 1, "auto_map": {}, "b": [{"auto_map": 1, "c": 2}], "d": {"attn_implementation": "o/k", "e": None}}
    assert foreign.clean(values) == {"a": 1, "b": [{"c": 2}], "d": {"e": None}}
    kept = {"attn_implementation": "sdpa", "_attn_implementation": {"": "eager", "vision": None}}
    assert foreign.clean(kept) == kept


def test_the_shim_opens_every_family_without_our_import(tmp_path):
    """`AutoModel.from_pretrained(folder, trust_remote_code=True)`, in one process for all of them."""
    folders = []
    for name, make in FAMILIES.items():
        folders.append(str(tmp_path / name.replace(" ", "_")))
        make().save_pretrained(folders[-1])
    code = (
        "import sys; from transformers import AutoModel, AutoProcessor\n"
        f"for folder in {folders!r}:\n"
        "    model = AutoModel.from_pretrained(folder, trust_remote_code=True)\n"
        "    print('@', type(model).__name__)\n"
        f"print('@', type(AutoProcessor.from_pretrained({folders[0]!r}, trust_remote_code=True)).__name__)\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r})\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    expected = [type(make()).__name__ for make in FAMILIES.values()]
    said = [line[2:] for line in done.stdout.splitlines() if line.startswith("@")]
    assert said == [*expected, "GroundedProcessor"], done.stderr[-800:]
    assert [path.name for path in (tmp_path / "again").glob("*.py")] == ["unimed_shim.py"]
    assert type(unimed.load(tmp_path / "again")).__name__ == expected[-1]
    settings = json.loads((tmp_path / "again" / "config.json").read_text())
    assert set(settings["auto_map"].values()) <= {f"unimed_shim.{name}" for name in ("ClipConfig", "ClipModel")}


@pytest.mark.parametrize("path", sorted((ROOT / "unimed").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_foreign_folders_are_opened_by_the_door_alone(path):
    """`X.from_pretrained(...)` elsewhere is of classes of ours: `super()`, imported from `unimed`, or defined here."""
    if path.name == "foreign.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unimed")
        for alias in node.names
    } | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    allowed = {"open_clip_names.py": {"load_checkpoint", "snapshot_download"}}.get(path.name, set())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name) or not isinstance(node.ctx, ast.Load):
            continue
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        if name not in OPENERS - allowed:
            continue
        owner = node.value if isinstance(node, ast.Attribute) else None
        of_super = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"
        of_ours = isinstance(owner, ast.Name) and owner.id in ours | {"kind", "cls"}
        assert of_super or of_ours, f"{path}:{node.lineno}: {name} belongs to unimed.models.foreign"


def test_half_precision_and_attention_are_by_a_list(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="eager, sdpa"):
        type(model).from_pretrained(tmp_path / "model", attn_implementation="owner/kernel")
    assert type(model).from_pretrained(tmp_path / "model", dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(LoadError, match="float7"):
        unimed.load(tmp_path / "model", dtype="float7")
    with pytest.raises(LoadError, match="'foo'"):
        unimed.load(tmp_path / "model", device="foo")


def test_a_file_of_a_hub_folder_is_fetched_by_name(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or tmp_path / names[1])
    assert foreign.hub_file("microsoft/BiomedParse/biomedparse_v1.pt") == tmp_path / "biomedparse_v1.pt"
    assert foreign.hub_file("UzairK/unimed-clip-vit-b16") == tmp_path / "unimed-clip-vit-b16.pt"
    assert asked == [
        ("microsoft/BiomedParse", "biomedparse_v1.pt"),
        ("UzairK/unimed-clip-vit-b16", "unimed-clip-vit-b16.pt"),
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("Luffy503/UniBiomed", "a/b/modeling.py", "a/../b/c.pt", "runs/mine/x.pt", "/a/b/c.pt", "c.pt"):
        assert foreign.hub_file(name) is None, name
    assert len(asked) == 2
