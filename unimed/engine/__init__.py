"""Training and testing by a config; the only package that knows mmengine's Runner."""


def train(config, work_dir=None, resume=None, cfg_options=None) -> dict:
    """Train as a config says; see `unimed.engine.training.train`."""
    from unimed.engine.training import train as run

    return run(config, work_dir, resume, cfg_options)


def evaluate(config, checkpoint=None, work_dir=None, cfg_options=None) -> dict:
    """Test a checkpoint on `test_data`; see `unimed.engine.testing.evaluate`."""
    from unimed.engine.testing import evaluate as run

    return run(config, checkpoint, work_dir, cfg_options)


__all__ = ["evaluate", "train"]
