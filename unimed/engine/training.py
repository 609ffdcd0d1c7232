"""`train`: from a config to a run folder with checkpoints, logs and curves. The host is mmengine's Runner."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS as HOST_HOOKS
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from mmengine.runner.utils import set_random_seed

from unimed.data.mixture import Mixture, seeded
from unimed.engine import checkpoint as checkpoints
from unimed.engine.config import load_config
from unimed.engine.loop import EngineLoop, random_states, restore_random_states
from unimed.engine.report import TRACKERS, Reporter
from unimed.engine.strategies import build_strategy
from unimed.engine.strategy import start_processes, total, world
from unimed.engine.stream import Stream, build_datasets, to_device
from unimed.registry import COLLATORS, HOOKS, TASKS, did_you_mean

#: Exit code of a run that was asked to stop (SIGTERM, SIGUSR1) and saved; EX_TEMPFAIL, "try again later".
PREEMPTED = 75
_runs = 0


class EngineRunner(Runner):
    """mmengine's Runner; saving, resuming, wrapping and weight initialisation are the engine's.

    mmengine would unpickle checkpoints, delete the last one before the next is written, forget the generators, and
    initialise loaded weights anew.
    """

    def __init__(self, settings, folder: Path, strategy, stream, optimizer, resume, load_from):
        global _runs
        _runs += 1
        self.settings, self.folder, self.strategy, self.stream = settings, folder, strategy, stream
        self._wanted, self._start_from = resume, load_from
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        decay = settings["ema"]
        self._average = {k: v.clone() for k, v in strategy.local_parameters().items()} if decay else None
        backends = [] if world()[0] else [dict(type=TRACKERS[word]) for word in settings["log"]["to"]]
        super().__init__(
            model=strategy.task,
            work_dir=str(folder),
            train_dataloader=stream,
            train_cfg=dict(type=EngineLoop),
            optim_wrapper=OptimWrapper(optimizer),
            default_hooks=dict.fromkeys(
                ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
            ),
            custom_hooks=[_build_hook(hook) for hook in settings["hooks"]],
            launcher="pytorch" if world()[1] > 1 else "none",
            visualizer=dict(type="Visualizer", vis_backends=backends, save_dir=str(folder)),
            randomness=dict(seed=settings["seed"] + world()[0]),
            experiment_name=f"{folder.name}-{os.getpid()}-{_runs}",
            default_scope="mmengine",
            cfg=settings,
        )
        options = settings["checkpoint"]
        self.writer = checkpoints.Writer(folder / "checkpoints", options["keep"], options["background"])
        self.reporter = Reporter(folder, settings, self.logger, self.visualizer, main=world()[0] == 0)

    def wrap_model(self, model_wrapper_cfg, model):
        return model

    def _init_model_weights(self) -> None:
        pass

    def _maybe_compile(self, target: str) -> None:
        pass  # done before the strategy wraps the task

    def _log_env(self, env_cfg) -> None:
        pass

    def dump_config(self) -> None:
        if world()[0] == 0:
            (self.folder / "config.py").write_text(self.settings.pretty_text)
            (self.folder / "env.json").write_text(json.dumps(environment(), indent=1))

    def update_average(self) -> None:
        """Move the averaged weights by one step."""
        if self._average is not None:
            with torch.no_grad():
                for name, parameter in self.strategy.local_parameters().items():
                    self._average[name].lerp_(parameter, 1 - self.settings["ema"])

    def save_checkpoint(self, *args, wait: bool = True, **kwargs) -> None:
        """Write the checkpoint of this step; all ranks call it, the first writes.

        Without `wait` and with `checkpoint.background` training goes on while it is written.
        """
        weights = self.strategy.weights(self.settings["checkpoint"]["weights"])
        table, groups = self.strategy.optimizer_table(self.optim_wrapper.optimizer)
        rng, numbers = random_states(self.strategy.device)
        state = {
            **self.train_loop.state(),
            "optimizer_groups": groups,
            "base_rates": self.base_rates,
            "scaler": self.strategy.scaler.state_dict(),
            "random": numbers,
            "weights": self.settings["checkpoint"]["weights"],
            "world_size": world()[1],
            "batch_size": self.settings["batch_size"],
        }
        tables = {"model": weights, "optimizer": table, "rng": rng}
        if self._average is not None:
            tables["ema"] = {name: self.strategy.gather(name, value) for name, value in self._average.items()}
        problem = [None]
        if world()[0] == 0:
            if self.settings["checkpoint"]["background"] and self.strategy.device.type == "cpu":
                # On the CPU these tables are the live tensors, which the next step changes.
                tables = {name: {k: v.clone() for k, v in table.items()} for name, table in tables.items()}
            try:
                self.writer.write(checkpoints.Checkpoint(self.train_loop.iter, tables, state), wait)
            except checkpoints.CheckpointError as error:
                problem = [str(error)]
        if world()[1] > 1:
            dist.broadcast_object_list(problem)
        if problem[0]:
            raise checkpoints.CheckpointError(problem[0])

    def load_or_resume(self) -> None:
        root = self.folder / "checkpoints"
        if self._wanted is None:
            if world()[0] == 0 and root.exists():
                # A new run must not share a folder with an old one: retention would count both.
                root.rename(self.folder / f"checkpoints-before-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
            if world()[0] == 0:
                self.reporter.path.unlink(missing_ok=True)
            if self._start_from:
                told = self._start_from
                told = {"path": told, "untrained": ()} if isinstance(told, str) else {"untrained": ()} | dict(told)
                table = checkpoints.load_weights(told["path"])
                missing = self.strategy.load_trained(table, told["path"], told["untrained"])
                self.logger.info(f"weights of {told['path']} loaded, {len(missing)} names kept as built")
            return
        path = [None]
        if world()[0] == 0:
            found = checkpoints.find(root) if self._wanted == "auto" else checkpoints.resolve(self._wanted)
            path = [str(found) if found else None]
        if world()[1] > 1:
            dist.broadcast_object_list(path)
        if path[0] is None:
            self.logger.info(f"nothing to resume in {root}; starting anew")
            return
        self.restore(checkpoints.load(path[0]))

    def restore(self, loaded: checkpoints.Checkpoint) -> None:
        """Everything as it was after the step of the checkpoint."""
        state = loaded.state
        self.strategy.load_weights(loaded.tables["model"], strict=state["weights"] == "all")
        optimizer = self.optim_wrapper.optimizer
        self.strategy.load_optimizer(optimizer, loaded.tables["optimizer"], state["optimizer_groups"])
        if state["scaler"]:
            self.strategy.scaler.load_state_dict(state["scaler"])
        if self._average is not None and "ema" in loaded.tables:
            self._average = {name: self.strategy.scatter(name, full) for name, full in loaded.tables["ema"].items()}
        self.train_loop.restore(state)
        if (state["world_size"], state["batch_size"]) != (world()[1], self.settings["batch_size"]):
            # Windows are counted in joined batches; with another size the count of samples is what carries over.
            samples = state["position"]["window"] * state["world_size"] * state["batch_size"]
            position = {"window": samples // (world()[1] * self.settings["batch_size"]), "used": 0}
            self.stream.restore(position)
            self.logger.warning(f"resumed with another number of ranks or batch size: data go on at {position}")
        if not restore_random_states(loaded, self.strategy.device):
            self.logger.warning("resumed with another number of ranks: random numbers differ from the first run")
        self.reporter.restore(loaded.step)
        if world()[0] == 0:
            for newer in (self.folder / "checkpoints").glob("step_*"):
                if checkpoints.NAME.fullmatch(newer.name) and int(newer.name[5:]) > loaded.step:
                    newer.rename(newer.with_name(f"set-aside-{os.getpid()}-{newer.name}"))
        self.logger.info(f"resumed {loaded.path} at step {loaded.step}")

    def validate(self) -> dict[str, float]:
        """Mean losses over `val_data` and what the task itself measures. Leaves the training's random numbers alone."""
        settings, task, strategy = self.settings, self.strategy.task, self.strategy
        if not settings["val_data"]:
            return {}
        if not hasattr(self, "_val"):
            datasets, _, weights, _ = build_datasets(settings["val_data"])
            self._val = datasets, Mixture([len(d) for d in datasets], weights, settings["seed"], shuffle=True)
        datasets, mixture = self._val
        count = min(sum(len(d) for d in datasets), settings["validate_batches"] * settings["batch_size"])
        samples = [datasets[key.dataset][key.index] for key in (mixture[i] for i in range(count))]
        chunks = [samples[i : i + settings["batch_size"]] for i in range(0, count, settings["batch_size"])]
        rank, size = world()
        # Sharded parameters are gathered by all ranks together, so all run every batch.
        mine = chunks if strategy.collective else chunks[rank::size]
        sums: dict[str, float] = {}
        devices = [strategy.device] if strategy.device.type == "cuda" else []
        task.eval()
        metrics = {}
        with torch.random.fork_rng(devices), seeded(settings["seed"], 6), torch.no_grad():
            for chunk in mine:
                batch = to_device(self.stream.collate.collator(chunk), strategy.device)
                with strategy.autocast():
                    outputs = (strategy.module if strategy.collective else task)(batch)
                for name, value in outputs.items():
                    if torch.is_tensor(value) and value.numel() == 1:
                        sums[name] = sums.get(name, 0.0) + float(value) * len(chunk)
            if size > 1:
                every = [None] * size
                dist.all_gather_object(every, sorted(sums))
                names = sorted({name for part in every for name in part})
            else:
                names = sorted(sums)
            values = total([sums.get(n, 0.0) for n in names] + [float(sum(map(len, mine)))], strategy.device)
            metrics = {f"val_{name}": value / values[-1] for name, value in zip(names, values, strict=False)}
            if hasattr(task, "validate") and not strategy.collective and rank == 0:
                metrics.update({k: float(v) for k, v in task.validate(samples[: settings["validate_samples"]]).items()})
        if size > 1:
            dist.barrier()
        self.reporter.validation(self.train_loop.iter, metrics)
        return metrics


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

    Raises:
        ConfigError, RegistryError: the config is wrong.
        CheckpointError: a checkpoint cannot be written or read.
        TrainingError, DataError: too many steps or samples were bad.
    """
    settings = load_config(config, cfg_options)
    if not settings["train_data"]:
        raise ValueError("the config has no train_data")
    for word in settings["log"]["to"]:
        if word not in TRACKERS:
            raise ValueError(f"unknown tracker {word!r}{did_you_mean(word, TRACKERS)} Valid: {sorted(TRACKERS)}")
    folder = run_folder(settings, work_dir)
    device = start_processes(settings["device"])
    set_random_seed(seed=settings["seed"])
    task = TASKS.build(settings["task"])
    if settings["gradient_checkpointing"]:
        _checkpoint_activations(task)
    strategy = build_strategy(settings["strategy"], task, device, settings["precision"])
    if settings["compile"]:
        task.compile(**({"backend": settings["compile"]} if isinstance(settings["compile"], str) else {}))
    parameters = list(task.train_parameters()) if hasattr(task, "train_parameters") else list(task.parameters())
    if strategy.word == "fsdp2":
        # Sharding replaced the parameters; a task hands out the new ones when asked again, as above.
        parameters = [p for p in parameters if isinstance(p, dict) or p.requires_grad]
    optimizer = build_optimizer(settings["optimizer"], with_rates(parameters, settings["optimizer"]["lr"]))
    optimizer = strategy.prepare(optimizer, settings["clip"])
    collator = build_collator(settings["collate"], task)
    stream = Stream(
        settings["train_data"],
        collator,
        batch_size=settings["batch_size"],
        rank=world()[0],
        world_size=world()[1],
        seed=settings["seed"],
        num_workers=settings["num_workers"],
        deaths=settings["guards"]["max_worker_deaths"],
    )
    runner = EngineRunner(settings, folder, strategy, stream, optimizer, resume, settings["load_from"])
    try:
        runner.train()
        runner.reporter.draw()
    finally:
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
    """An optimiser of torch (or one mmengine knows, such as bitsandbytes') by its name."""
    arguments = dict(config)
    name = arguments.pop("type")
    cls = getattr(torch.optim, name, None) or OPTIMIZERS.module_dict.get(name)
    if cls is None:
        choices = [n for n in dir(torch.optim) if n[0].isupper() and n not in ("Optimizer",)]
        raise ValueError(f"unknown optimizer {name!r}{did_you_mean(name, choices)} Valid choices: {choices}")
    if not parameters:
        raise ValueError("the task has no trainable parameters")
    return cls(parameters, **arguments)


def build_collator(config: Mapping | None, task):
    """The collator of a config, with the task's processor."""
    if not config:
        raise ValueError("the config has no collate=dict(type=...)")
    processor = getattr(task, "processor", None)
    return COLLATORS.build(config, **({} if processor is None else {"processor": processor}))


def _build_hook(config):
    if isinstance(config, Hook):
        return config
    if isinstance(config.get("type"), str) and config["type"] in HOST_HOOKS.module_dict:
        return HOST_HOOKS.build(config)
    return HOOKS.build(config)


def _checkpoint_activations(task) -> None:
    if hasattr(task, "gradient_checkpointing_enable"):
        task.gradient_checkpointing_enable()
        return
    found = [m for m in task.modules() if getattr(m, "supports_gradient_checkpointing", False)]
    if not found:
        raise ValueError("gradient_checkpointing=True, but neither the task nor a model in it supports it")
    for module in found:
        enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
        enable()


def environment() -> dict:
    """Versions and machine, without names of people or hosts."""
    from importlib import metadata

    versions = {}
    for name in ("unimed", "torch", "transformers", "peft", "mmengine", "safetensors", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": sys.version.split()[0],
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "ranks": world()[1],
        "versions": versions,
    }
