"""A wrong config is refused before anything is built, and says what was meant."""

import pytest

from unimed.engine.config import ConfigError, load_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(max_step=3), "unknown key 'max_step'; did you mean 'max_steps'"),
        (dict(log=dict(intervall=3)), "log: unknown key 'intervall'; did you mean 'interval'"),
        (dict(max_steps="many"), "max_steps must be int, got 'many'"),
        (dict(compile=1), "compile must be bool"),
        (dict(batch_size=True), "batch_size must be int"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(precision="bf61"), "did you mean 'bf16'"),
        (dict(strategy="fsdp"), "did you mean 'fsdp2'"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config({"task": dict(type="TinyTask"), **changes})


def test_task_is_needed():
    with pytest.raises(ConfigError, match="the key 'task' is missing"):
        load_config({})


def test_missing_file():
    with pytest.raises(ConfigError, match="does not exist"):
        load_config("configs/none.py")


def test_base_and_options(tmp_path):
    (tmp_path / "base.py").write_text("task = dict(type='A')\nmax_steps = 5\nlog = dict(interval=2)\n")
    (tmp_path / "child.py").write_text("_base_ = ['base.py']\nmax_steps = 6\n")
    config = load_config(tmp_path / "child.py", {"log.to": ["tensorboard"], "seed": 3})
    assert (config.max_steps, config.log.interval, list(config.log.to), config.seed) == (6, 2, ["tensorboard"], 3)
    assert config.checkpoint.keep == 3
    with pytest.raises(ConfigError, match="--cfg-options: unknown key 'sed'"):
        load_config(tmp_path / "child.py", {"sed": 3})
