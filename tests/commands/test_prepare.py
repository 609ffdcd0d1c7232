"""The command line of data preparation: verbs, help and errors."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def call(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "prepare_data.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_lists_the_verbs_and_options():
    assert "sample" in call("--help").stdout
    done = call("sample", "--help")
    assert done.returncode == 0 and "--cache" in done.stdout and "--force" in done.stdout


def test_unknown_verb_and_block_are_named(tmp_path):
    done = call("samples")
    assert done.returncode == 1 and "invalid choice: 'samples'" in done.stderr
    done = call("sample", "--out", str(tmp_path / "x"), "--blocks", "atoms")
    assert done.returncode == 1 and "unknown block atoms; known are nuclei" in done.stderr
    assert not (tmp_path / "x").exists()
