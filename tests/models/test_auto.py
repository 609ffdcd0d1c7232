import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import tiny_model  # noqa: E402

import unimed
from unimed.models.auto import LoadError
from unimed.models.families import FAMILIES

ROOT = Path(__file__).parent.parent.parent
ORDERS = (
    "import unimed.models; from transformers import AutoModel",
    "from transformers import AutoModel; import unimed.models",
    "import unimed; from transformers import AutoModel; unimed.models",
)


def test_an_exported_folder_loads_and_answers(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    model = unimed.load(tmp_path / "model", device="cpu", dtype="float32")
    assert not model.training
    assert model.predict(np.zeros((9, 9), np.uint8), "what", max_new_tokens=2).model_reference


def test_what_is_no_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nobody"}')
    with pytest.raises(LoadError, match="unibiomed"):
        unimed.load(tmp_path)
    with pytest.raises(LoadError, match="does not exist"):
        unimed.load("a/b/c/d")
    with pytest.raises(LoadError, match="no folder here"):
        unimed.load("exports/not_there")


def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(LoadError, match="no CUDA device"):
        unimed.load(tmp_path, device="cuda")


def test_importing_the_package_stays_light():
    """Without the libraries that take seconds; how many seconds they take is a matter of the machine."""
    heavy = ("torch", "transformers", "scipy", "PIL", "mmengine", "torchvision", "monai", "matplotlib")
    code = f"import sys, unimed; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("order", ORDERS)
def test_auto_model_knows_our_types_after_import_of_the_models(tmp_path, order):
    tiny_model().save_pretrained(tmp_path / "model")
    code = f"{order}; print(type(AutoModel.from_pretrained({str(tmp_path / 'model')!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "GroundedMLLM", done.stderr[-800:]


def test_a_family_can_be_imported_on_its_own():
    """Each in a process of its own, which is forked when what takes long (and is not ours) has been imported."""
    code = f"""
import os, sys
import peft, timm, torch, transformers.modeling_utils
assert not [name for name in sys.modules if name.startswith("unimed")]
for family in {tuple(FAMILIES)!r}:
    child = os.fork()
    if child == 0:
        import importlib, unimed
        importlib.import_module(family)
        os._exit(0)
    print(family, os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [f"{family} 0" for family in FAMILIES], done.stderr[-800:]


def test_a_slip_in_a_folder_name_does_not_ask_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", lambda *_, **__: pytest.fail("asked the hub"))
    (tmp_path / "exports" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match="exports/smal is no folder here; exports holds: small"):
        unimed.load("exports/smal")
