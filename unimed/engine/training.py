"""`train`: from a config to a run folder with checkpoints, logs and curves."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.registry import OPTIMIZERS
from mmengine.runner.utils import set_random_seed

from unimed.engine.config import ConfigError, load_config
from unimed.engine.errors import traceback_kept_in
from unimed.engine.report import TRACKERS
from unimed.engine.runner import EngineRunner
from unimed.engine.shutdown import GracefulShutdown
from unimed.engine.strategies import build_strategy
from unimed.engine.strategy import start_processes, world
from unimed.engine.stream import Stream
from unimed.engine.validation import Validation
from unimed.engine.watchdog import Watchdog
from unimed.files import FolderLock
from unimed.progress import stage
from unimed.registry import COLLATORS, TASKS, did_you_mean
from unimed.tasks.base import Task


def train(config, work_dir=None, resume: str | None = None, cfg_options: Mapping | None = None) -> dict:
    """Train as a config says.

    Args:
        config: path of a python config, a mapping, or an mmengine Config.
        work_dir: the run folder; else the config's `work_dir`, else runs/<config name>.
        resume: None starts anew, "auto" goes on from the newest whole checkpoint of the run folder if there is one, a
            path goes on from that checkpoint.
        cfg_options: dotted keys that replace config values.

    Returns:
        {"step", "loss", "stopped" (empty, or the signal that ended it), "checkpoint", "work_dir"}.

    SIGTERM, SIGUSR1, SIGHUP and Ctrl-C let the step in progress end, save, and return with "stopped".

    Raises:
        ConfigError, RegistryError: the config is wrong.
        CheckpointError: a checkpoint cannot be written or read.
        TrainingError, DataError: too many steps or samples were bad.
        StopRequested: a signal came before the first step.
        FolderInUseError: another run writes into the run folder.
    """
    with GracefulShutdown() as shutdown:
        settings = load_config(config, cfg_options)
        if not settings["train_data"]:
            raise ConfigError(f"{settings.filename or 'the config'} has no train_data")
        for name in settings["log"]["to"]:
            if name not in TRACKERS:
                raise ConfigError(
                    f"log.to: unknown tracker {name!r}{did_you_mean(name, TRACKERS)} Valid: {sorted(TRACKERS)}"
                )
        folder = run_folder(settings, work_dir)
        rank = int(os.environ.get("RANK", 0))
        with traceback_kept_in(folder, rank), only_writer(folder, "training", rank):
            return _train(settings, folder, resume, shutdown)


def _train(settings, folder: Path, resume: str | None, shutdown: GracefulShutdown) -> dict:
    limit = settings["guards"]["hang_timeout_s"]
    device = start_processes(settings["device"], limit)
    set_random_seed(seed=settings["seed"])
    with stage("building the model"):
        task = build_task(settings)
    if settings["gradient_checkpointing"]:
        task.gradient_checkpointing_enable()
    if settings["compile"] and settings["context_parallel"] > 1:
        raise ConfigError("context_parallel does not go with compile; leave one of them out")
    strategy = build_strategy(settings["strategy"], task, device, settings["precision"], settings["context_parallel"])
    if settings["checkpoint"]["sharded"] and not strategy.has_shards:
        raise ConfigError(f"checkpoint.sharded=True does not go with strategy={strategy.name!r}; use 'fsdp2'")
    if settings["compile"]:
        task.compile(**({"backend": settings["compile"]} if isinstance(settings["compile"], str) else {}))
    # Asked for after the strategy wrapped the task: sharding replaces the parameters.
    parameters = task.train_parameters()
    optimizer = build_optimizer(settings["optimizer"], with_rates(parameters, settings["optimizer"]["lr"]))
    optimizer = strategy.prepare(optimizer, settings["clip"])
    collator = build_collator(settings["collate"], task)
    data_rank, data_ranks = strategy.data_ranks or world()
    stream = Stream(
        settings["train_data"],
        collator,
        batch_size=settings["batch_size"],
        rank=data_rank,
        world_size=data_ranks,
        seed=settings["seed"],
        num_workers=settings["num_workers"],
        restarts=settings["guards"]["max_worker_restarts"],
        timeout_s=settings["guards"]["worker_timeout_s"],
    )
    validation = Validation(settings, collator) if settings["val_data"] else None
    epochs = _epochs_to_steps(settings, stream.length, data_ranks)
    watchdog = Watchdog(limit, folder, world()[0])
    runner = EngineRunner(
        settings, folder, strategy, stream, optimizer, resume, settings["load_from"], validation, shutdown, watchdog
    )
    if epochs:
        runner.logger.info(epochs)
    try:
        with watchdog:
            runner.train()
        runner.reporter.draw()
    finally:
        stream.close()
        runner.reporter.close()
        runner.visualizer.close()
        for handler in list(runner.logger.handlers):
            if isinstance(handler, logging.FileHandler):
                handler.close()
    losses = [record["loss"] for record in runner.reporter.records if record["kind"] == "train"]
    return {
        "step": runner.train_loop.iter,
        "loss": losses[-1] if losses else None,
        "stopped": runner.train_loop.stop_reason,
        "checkpoint": str(folder / "checkpoints" / f"step_{runner.train_loop.iter:08d}"),
        "work_dir": str(folder),
    }


def build_task(settings) -> Task:
    """The task of a config.

    Raises:
        ConfigError: the config names something that is no `Task`, or gives it an argument it cannot use.
    """
    try:
        task = TASKS.build(settings["task"])
    except (TypeError, AttributeError) as error:
        # Of the wrong kind for the constructor: a text for a number, say.
        raise ConfigError(f"task: {settings['task'].get('type')} cannot be built: {error}") from error
    if not isinstance(task, Task):
        raise ConfigError(f"task: {type(task).__name__} is not a unimed.tasks.base.Task")
    return task


def _epochs_to_steps(settings, samples: int, ranks: int) -> str:
    """Set `max_steps` where the config gives `epochs`; returns what to tell."""
    if settings["epochs"] is None:
        return ""
    per_step = settings["batch_size"] * settings["accumulate"] * ranks
    settings["max_steps"] = max(1, math.ceil(settings["epochs"] * samples / per_step))
    told = f"{settings['epochs']:g} epochs of {samples} samples are {settings['max_steps']} steps of {per_step}"
    settings["epochs"] = None
    return told


@contextlib.contextmanager
def only_writer(folder: Path, purpose: str, rank: int):
    """The first rank holds the lock of the folder: what two runs write there would mix.

    Raises:
        FolderInUseError: another process holds it.
    """
    if rank:
        yield
        return
    with FolderLock(folder, purpose):
        yield


def run_folder(settings, work_dir) -> Path:
    """The folder of a run: the argument, the config's `work_dir`, or runs/<config name>; made if need be."""
    name = Path(settings.filename).stem if settings.filename else "run"
    folder = Path(work_dir or settings["work_dir"] or Path("runs") / name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def with_rates(parameters: list, rate: float) -> list:
    """Groups that name a factor (`lr_mult`) get their own learning rate; the rest is left as it is."""
    return [
        {k: v for k, v in group.items() if k != "lr_mult"} | {"lr": rate * group["lr_mult"]}
        if isinstance(group, dict) and "lr_mult" in group
        else group
        for group in parameters
    ]


def build_optimizer(config: Mapping, parameters) -> torch.optim.Optimizer:
    """An optimizer of torch (or one mmengine knows, such as bitsandbytes') by its name.

    Raises:
        ConfigError: an unknown name or argument, or nothing to train.
    """
    arguments = dict(config)
    name = arguments.pop("type", None)
    cls = getattr(torch.optim, str(name), None) or OPTIMIZERS.module_dict.get(name)
    if cls is None:
        choices = [n for n in dir(torch.optim) if n[0].isupper() and n not in ("Optimizer",)]
        raise ConfigError(f"optimizer: unknown type {name!r}{did_you_mean(str(name), choices)} Valid: {choices}")
    if not parameters:
        raise ConfigError("the task has no trainable parameters; see its `freeze`, `lora` and `trainable`")
    known = inspect.signature(cls).parameters
    unknown = [key for key in arguments if key not in known]
    if unknown and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        valid = sorted(set(known) - {"params"})
        raise ConfigError(f"optimizer: {name} takes no {unknown[0]!r}{did_you_mean(unknown[0], valid)} Valid: {valid}")
    try:
        return cls(parameters, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {name}: {error}") from error


def build_collator(config: Mapping | None, task):
    """The collator of a config, with the task's processor."""
    if not config:
        raise ConfigError("the config has no collate=dict(type=...)")
    return COLLATORS.build(config, **({} if task.processor is None else {"processor": task.processor}))
