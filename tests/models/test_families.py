"""Model types are registered whatever is imported first."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "first", ["import unimed.models.backbones.tiny_vit", "import unimed; from transformers import SamModel"]
)
def test_a_half_imported_model_of_transformers_is_no_circle(first):
    code = f"{first}; import unimed.models.grounded as g; from transformers import AutoConfig; "
    code += "print(AutoConfig.for_model(g.GroundedConfig.model_type).model_type)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
