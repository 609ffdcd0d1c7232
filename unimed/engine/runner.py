"""The host of a training: mmengine's Runner with the engine's own checkpoints, loop and reports."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS as HOST_HOOKS
from mmengine.runner import Runner

from unimed.engine import checkpoint as checkpoints
from unimed.engine import sharded
from unimed.engine.config_files import python_text
from unimed.engine.loop import EngineLoop, random_states, restore_random_states
from unimed.engine.report import TRACKERS, Reporter
from unimed.engine.shard_writer import ShardWriter
from unimed.engine.strategy import world
from unimed.io.remote import redacted
from unimed.registry import HOOKS

_runs = 0


class EngineRunner(Runner):
    """mmengine's Runner; saving, resuming, wrapping and weight initialisation are the engine's.

    mmengine would unpickle checkpoints, delete the last one before the next is written, forget the generators, and
    initialise loaded weights anew.
    """

    def __init__(
        self, settings, folder: Path, strategy, stream, optimizer, resume, load_from, validation, shutdown, watchdog
    ):
        global _runs
        _runs += 1
        self.validation, self.shutdown, self.watchdog = validation, shutdown, watchdog
        self.settings, self.folder, self.strategy, self.stream = settings, folder, strategy, stream
        self._wanted, self._start_from = resume, load_from
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        #: How many ranks read different samples.
        self.data_ranks = (strategy.data_ranks or world())[1]
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
            # Ranks that work on the same samples must drop the same units.
            randomness=dict(seed=settings["seed"] + (strategy.data_ranks or world())[0]),
            experiment_name=f"{folder.name}-{os.getpid()}-{_runs}",
            default_scope="mmengine",
            cfg=settings,
        )
        options = settings["checkpoint"]
        kind = ShardWriter if options["sharded"] else checkpoints.Writer
        self.writer = kind(folder / "checkpoints", options["keep"], options["background"])
        self.reporter = Reporter(
            folder, settings, self.logger, self.visualizer, world()[0] == 0, strategy.task.headline_metrics
        )

    def build_logger(self, *args, **kwargs):
        logger = super().build_logger(*args, **kwargs)
        # mmengine lists its hooks at every start, also where there are none.
        logger.addFilter(lambda record: not str(record.msg).startswith("Hooks will be executed in the following order"))
        return logger

    def train(self):
        """Build the loop, restore what is to be resumed, run."""
        self._train_loop = self.build_train_loop(self._train_loop)
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        self.call_hook("before_run")
        self.load_or_resume()
        self.train_loop.run()
        self.call_hook("after_run")
        return self.model

    def wrap_model(self, model_wrapper_cfg, model):
        return model

    def _log_env(self, env_cfg) -> None:
        pass

    def dump_config(self) -> None:
        if world()[0] == 0:
            (self.folder / "config.py").write_text(redacted(python_text(self.settings.to_dict())), encoding="utf-8")
            (self.folder / "env.json").write_text(json.dumps(environment(), indent=1))

    def update_average(self) -> None:
        """Move the averaged weights by one step."""
        if self._average is not None:
            with torch.no_grad():
                for name, parameter in self.strategy.local_parameters().items():
                    self._average[name].lerp_(parameter, 1 - self.settings["ema"])

    def save_checkpoint(self, *args, wait: bool = True, prune: bool = True, **kwargs) -> None:
        """Write the checkpoint of this step; all ranks call it, the first writes.

        Without `wait` and with `checkpoint.background` training goes on while it is written. Without `prune` it stands
        beside those that `checkpoint.keep` keeps, for `discard_checkpoint`.
        """
        self.watchdog.beat(f"saving after step {self.train_loop.iter}", waiting=world()[0] > 0)
        options, optimizer = self.settings["checkpoint"], self.optim_wrapper.optimizer
        rng, numbers = random_states(self.strategy.device)
        state = {
            **self.train_loop.state(),
            "optimizer_groups": self.strategy.optimizer_groups(optimizer),
            "base_rates": self.base_rates,
            "scaler": self.strategy.scaler.state_dict(),
            "random": numbers,
            "weights": options["weights"],
            "world_size": world()[1],
            "data_ranks": self.data_ranks,
            "batch_size": self.settings["batch_size"],
        }
        if options["sharded"]:
            shards = self.strategy.shards(options["weights"], optimizer)
            if self._average is not None:
                shards["ema"] = dict(self._average)
            self.writer.write(checkpoints.Checkpoint(self.train_loop.iter, {"rng": rng}, state), shards, wait, prune)
            return
        tables = {
            "model": self.strategy.weights(options["weights"]),
            "optimizer": self.strategy.optimizer_table(optimizer)[0],
            "rng": rng,
        }
        if self._average is not None:
            tables["ema"] = {name: self.strategy.gather(name, value) for name, value in self._average.items()}
        problem = [None]
        if world()[0] == 0:
            if options["background"] and self.strategy.device.type == "cpu":
                # On the CPU these tables are the live tensors, which the next step changes.
                tables = {name: {k: v.clone() for k, v in table.items()} for name, table in tables.items()}
            try:
                self.writer.write(checkpoints.Checkpoint(self.train_loop.iter, tables, state), wait, prune)
            except checkpoints.CheckpointError as error:
                problem = [str(error)]
        if world()[1] > 1:
            dist.broadcast_object_list(problem)
        if problem[0]:
            raise checkpoints.CheckpointError(problem[0])

    def discard_checkpoint(self) -> None:
        """Delete the checkpoint of this step, which was needed for the time of a validation only."""
        if world()[0] == 0 or self.settings["checkpoint"]["sharded"]:
            self.writer.wait()
        if world()[0] == 0:
            checkpoints.discard(self.folder / "checkpoints" / f"step_{self.train_loop.iter:08d}")

    def finish_saving(self) -> None:
        """Until a checkpoint that is written in the background is on the disk.

        Raises:
            CheckpointError: it could not be written.
        """
        self.writer.wait()

    def load_or_resume(self) -> None:
        root = self.folder / "checkpoints"
        if self._wanted is None:
            if world()[0] == 0 and root.exists():
                # A new run must not share a folder with an old one: retention would count both.
                found = checkpoints.find(root)
                aside = self.folder / f"checkpoints-before-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
                root.rename(aside)
                if found is not None:
                    self.logger.warning(
                        f"{self.folder} holds an earlier run up to step {int(found.name[5:])}; this one begins anew. "
                        f"To go on instead: stop it, and give --resume {aside / found.name} (next time --resume auto)"
                    )
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
            if found is not None and self._wanted != "auto":
                checkpoints.verify(found)
            path = [str(found) if found else None]
        if world()[1] > 1:
            dist.broadcast_object_list(path)
        if path[0] is None:
            self.logger.info(f"nothing to resume in {root}; starting anew")
            return
        by_parts = self.strategy.has_shards and checkpoints.is_sharded(path[0])
        loaded = checkpoints.load(path[0], whole=not by_parts)
        try:
            self.restore(loaded, by_parts)
        except ValueError as error:
            raise checkpoints.CheckpointError(
                f"{path[0]}: {error}. Is it of this config? Another one needs a --work-dir of its own, and may start "
                "from these weights with load_from"
            ) from error

    def restore(self, loaded: checkpoints.Checkpoint, by_parts: bool = False) -> None:
        """Everything as it was after the step of the checkpoint; `by_parts` each rank reads its own part of tensors."""
        state, optimizer = loaded.state, self.optim_wrapper.optimizer
        whole_model = state["weights"] == "all"
        if by_parts:
            folder = loaded.path / sharded.FOLDER
            self.strategy.load_shards(folder, optimizer, state["optimizer_groups"], whole_model)
            if self._average is not None and "ema" in sharded.describe(folder):
                sharded.read_into(folder, {"ema": self._average})
        else:
            self.strategy.load_weights(loaded.tables["model"], strict=whole_model)
            self.strategy.load_optimizer(optimizer, loaded.tables["optimizer"], state["optimizer_groups"])
        if state["scaler"]:
            self.strategy.scaler.load_state_dict(state["scaler"])
        if self._average is not None and "ema" in loaded.tables:
            self._average = {name: self.strategy.scatter(name, full) for name, full in loaded.tables["ema"].items()}
        self.train_loop.restore(state)
        saved_ranks = state.get("data_ranks", state["world_size"])
        if (saved_ranks, state["batch_size"]) != (self.data_ranks, self.settings["batch_size"]):
            # Windows are counted in joined batches; with another size the count of samples is what carries over.
            samples = state["position"]["window"] * saved_ranks * state["batch_size"]
            position = {"window": samples // (self.data_ranks * self.settings["batch_size"]), "used": 0}
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

    def validate(self) -> dict[str, float] | None:
        """What was measured on `val_data`, {} without; None where a signal asked to stop in the middle."""
        if self.validation is None:
            return {}
        metrics = self.validation.run(self)
        if world()[1] > 1:
            dist.barrier()
        if metrics is not None:
            self.reporter.validation(self.train_loop.iter, metrics)
        return metrics


def _build_hook(config):
    if isinstance(config, Hook):
        return config
    if isinstance(config.get("type"), str) and config["type"] in HOST_HOOKS.module_dict:
        return HOST_HOOKS.build(config)
    return HOOKS.build(config)


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
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "ranks": world()[1],
        "versions": versions,
    }
