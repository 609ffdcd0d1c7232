"""configs/unified/_tiny.py starts under torchrun with two ranks, on what is there of the mixture."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from data.tiny_sets import records

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_unified_mixture_trains_on_two_ranks(tmp_path):
    records(tmp_path / "data" / "sample")
    options = (
        "max_steps=2 batch_size=2 log.interval=1 val_data=None device=cpu task.model.layers=1 task.model.hidden_dim=64"
    )
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "unimed", "train",
        str(ROOT / "configs" / "unified" / "_tiny.py"), "--work-dir", "run", "--cfg-options", *options.split(),
        "task.model.mask_config=dict(model_type='unimed_light', image_size=32, width=16)",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoints" / "step_00000002").is_dir()
    said = done.stdout + done.stderr
    assert "records sample referring" in said and said.count("uni_med Slake-VQA: ") == 1, "one rank says what is there"
