"""A run that is killed at random moments loses one interval at most and ends with the weights of an unkilled one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_five_kills(tmp_path):
    script = Path(__file__).parent / "kills.py"
    done = subprocess.run([sys.executable, script, tmp_path, "5"], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    result = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert result["loadable"] == 5 and result["most_lost"] <= 3 and result["same_weights"]
