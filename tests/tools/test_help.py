"""Every script says what it does, at once."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "demo").glob("*.py")])


#: Takes seconds to import, and is needed for no page of help.
HEAVY = ("torch", "transformers", "monai", "matplotlib", "SimpleITK")
HELP = """
import runpy, sys
script = sys.argv[1]
sys.argv = [script, "--help"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as stopped:
    assert stopped.code in (0, None), stopped.code
print("HEAVY", sorted(set(sys.modules) & set(sys.argv_heavy)))
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_is_there_without_heavy_libraries(script):
    code = HELP.replace("sys.argv_heavy", repr(HEAVY))
    done = subprocess.run([sys.executable, "-c", code, str(script)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout and "HEAVY []" in done.stdout, done.stdout[-200:]


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
