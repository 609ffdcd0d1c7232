"""Every config that is shipped loads, names what exists with arguments it takes, and its task can be built in small."""

from pathlib import Path

import pytest
import torch

from unimed.engine.config import ConfigError, load_config
from unimed.engine.training import build_optimizer, with_rates
from unimed.registry import COLLATORS, DATASETS, HOOKS, MODELS, TASKS, check

ROOT = Path(__file__).parents[2]
#: Files that others inherit are checked as a part of these.
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if "_base" not in f"{path.parent.name}/{path.stem}")
TEXTS = ["where is the liver?", "is it normal? yes no", "a chest radiograph with clear lungs", "nuclei lesion"] * 4
#: Models of a few thousand parameters in the place of the configured ones, by task or by what it scores.
SMALL = {
    "GroundingTask": dict(type="SmallGroundedMLLM", texts=TEXTS, hidden_dim=32, layers=2, heads=2, vision_grid=2),
    "benchmarks": dict(
        type="SmallUniMed", texts=TEXTS, image_size=56, vision_dim=32, vision_layers=1, hidden_dim=32, layers=1
    ),
}


def name(path):
    return str(path.relative_to(ROOT / "configs").with_suffix(""))


def loaded(path):
    try:
        return load_config(path)
    except ConfigError as error:
        if path.stem.startswith("_") and "'task' is missing" in str(error):
            pytest.skip("a part that other configs inherit")
        raise


def datasets_of(entry):
    """Every dataset a data entry names, also those inside of others."""
    if not isinstance(entry, dict):
        return
    if "type" in entry:
        yield entry
    for key, value in entry.items():
        for item in value if isinstance(value, (list, tuple)) and key == "mixture" else [value]:
            yield from datasets_of(item)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_names_what_exists(path):
    config = loaded(path)
    assert config.train_data or config.test_data or path.stem.startswith("_")
    check(config.task.to_dict(), TASKS)
    if not isinstance(config.task.model, str):
        check(config.task.model.to_dict(), MODELS)
    for key in ("train_data", "val_data", "test_data"):
        for entry in datasets_of((config[key] or {}) if config[key] is None else config[key].to_dict()):
            check(entry, DATASETS)
    if config.collate:
        check(config.collate.to_dict(), COLLATORS, processor=None)
    for hook in config.hooks:
        check(dict(hook), HOOKS)
    parameter = [torch.nn.Parameter(torch.zeros(2))]
    assert build_optimizer(config.optimizer, with_rates(parameter, config.optimizer["lr"]))


@pytest.mark.parametrize(
    "path",
    # Those of the large unified models freeze parts by name: tests/tasks/test_unified.py builds them on small folders.
    [p for p in CONFIGS if p.parent.name in ("quickstart", "uni_med") or name(p) == "unified/_tiny"],
    ids=name,
)
def test_task_is_built_in_small(path):
    config = load_config(path)
    options = config.task.to_dict()
    options["model"] = SMALL["benchmarks" if options.get("scores") == "benchmarks" else options["type"]]
    if options.get("connector") and "task_token_c" in options["connector"]:
        options["connector"] |= dict(task_token_c=8)
    task = TASKS.build(options)
    parameters = with_rates(list(task.train_parameters()), config.optimizer["lr"])
    optimizer = build_optimizer(config.optimizer, parameters)
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert count == sum(p.numel() for p in task.parameters() if p.requires_grad) > 0
    for hook in config.hooks:
        HOOKS.build(dict(hook))
