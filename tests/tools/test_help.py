"""Every script says what it does, at once."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "demo").glob("*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_is_there_within_a_second_of_computing(script):
    before = os.times()
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=ROOT)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert spent < 1.0, f"{script.name} --help computed for {spent:.2f} s"


@pytest.mark.parametrize("arguments", [[], ["fly", "x", "1"], ["train", "x", "many"]])
def test_dist_sh_refuses_what_it_does_not_know(arguments):
    done = subprocess.run(["bash", str(ROOT / "tools" / "dist.sh"), *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr


@pytest.mark.parametrize("failure", ["TrainingError", "CheckpointError", "FileNotFoundError"])
@pytest.mark.parametrize(("tool", "verb"), [("train", "train"), ("test", "evaluate")])
def test_what_ends_a_run_is_one_line(tool, verb, failure, monkeypatch, capsys):
    import unimed.engine
    from unimed.engine.checkpoint import CheckpointError
    from unimed.engine.loop import TrainingError

    if (tool, failure) == ("test", "TrainingError"):
        pytest.skip("nothing is trained")
    kinds = {"TrainingError": TrainingError, "CheckpointError": CheckpointError, "FileNotFoundError": FileNotFoundError}

    def fail(*_):
        raise kinds[failure]("shard.tar: sample 3 is broken")

    monkeypatch.setattr(unimed.engine, verb, fail)
    monkeypatch.setattr(sys, "argv", [tool, "config.py"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: shard.tar: sample 3 is broken\n"
