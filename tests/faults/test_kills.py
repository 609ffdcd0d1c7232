"""A run that is killed at random moments loses one interval at most and ends with the weights of an unkilled one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["background"]], ids=["plain", "background"])
def test_five_kills(tmp_path, how):
    script = Path(__file__).parent / "kills.py"
    done = subprocess.run([sys.executable, script, tmp_path, "5", *how], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    result = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    # A save in the background may still be running when the next interval is nearly over.
    assert result["loadable"] == 5 and result["most_lost"] <= (6 if how else 3) and result["same_weights"]
