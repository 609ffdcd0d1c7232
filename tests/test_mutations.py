"""The list of planted faults fits the code, and one of them is planted and noticed."""

import subprocess
import sys
from pathlib import Path

import pytest
from mutation_list import MUTATIONS
from mutations import MutationError, planted

ROOT = Path(__file__).parents[1]
QUICK = ("boxes: hull term of GIoU dropped",)


def test_every_fault_can_be_planted():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 60
    for mutation in MUTATIONS:
        compile(planted(mutation), mutation.file, "exec")
        for word in mutation.tests:
            if word.startswith("-k"):
                break
            assert (ROOT / "tests" / word.split("::")[0]).exists(), f"{mutation.name}: no tests {word}"


def test_a_text_that_moved_is_named(tmp_path):
    folder = tmp_path / "unimed" / "metrics"
    folder.mkdir(parents=True)
    mutation = next(m for m in MUTATIONS if m.file == "metrics/masks.py")
    (folder / "masks.py").write_text("nothing")
    with pytest.raises(MutationError, match="stands 0 times"):
        planted(mutation, tmp_path)
    (folder / "masks.py").write_text(mutation.old * 2)
    with pytest.raises(MutationError, match="stands 2 times"):
        planted(mutation, tmp_path)


@pytest.mark.slow
def test_a_fault_is_noticed_and_the_tree_is_left_alone():
    before = {m.file: (ROOT / "unimed" / m.file).read_bytes() for m in MUTATIONS if m.name in QUICK}
    command = [sys.executable, str(ROOT / "tests" / "mutations.py"), *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "1 of 1 noticed" in done.stdout, done.stdout + done.stderr
    assert {name: (ROOT / "unimed" / name).read_bytes() for name in before} == before
