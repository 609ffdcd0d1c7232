"""Logging of a training: a line per interval, `train.jsonl`, curves, trackers."""

from __future__ import annotations

import json
import math
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path

import torch.distributed as dist
from mmengine.registry import VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend

from unimed.engine.strategy import world
from unimed.files import read_json_lines, write_text
from unimed.progress import told

#: Clears the rest of a terminal's line.
CLEAR = "\x1b[K"
TRACKERS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend", "trackio": "TrackioBackend"}


@VISBACKENDS.register_module()
class TrackioBackend(BaseVisBackend):
    """Scalars to trackio, a local tracker with the interface of W&B. Needs `pip install trackio`."""

    def __init__(self, save_dir: str, project: str = "unimed", **options):
        super().__init__(save_dir)
        import trackio

        self._trackio = trackio
        trackio.init(project=project, name=Path(save_dir).name, **options)

    @property
    def experiment(self):
        return self._trackio

    def add_config(self, config, **kwargs) -> None:
        pass

    def add_scalar(self, name, value, step=0, **kwargs) -> None:
        self._trackio.log({name: float(value)}, step=step)

    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs) -> None:
        self._trackio.log({k: float(v) for k, v in scalar_dict.items()}, step=step)

    def close(self) -> None:
        self._trackio.finish()


class Reporter:
    """Collects what each step says and passes it on at intervals. Only the main process writes.

    Args:
        folder: the run folder.
        settings: the checked config.
        logger: where the line goes.
        visualizer: mmengine's, with the trackers the config names.
        main: False on all but one rank.
        headline: metrics of a validation that stand in its line, beside the loss; the first few where none is there.
    """

    def __init__(self, folder: Path, settings, logger, visualizer, main: bool, headline: tuple[str, ...] = ()):
        self.path, self.curves_path = folder / "train.jsonl", folder / "curves.png"
        self.settings, self.logger, self.visualizer, self.main = settings, logger, visualizer, main
        self.headline = headline
        self.records: list[dict] = []
        self._reset()
        self._same, self._last_loss, self._drawn, self._shown = 0, None, 0.0, 0.0

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps, self._waited, self._spent, self._samples, self._tokens = 0, 0.0, 0.0, 0.0, 0.0

    def restore(self, step: int) -> None:
        """Keep the records up to `step`; later ones belong to steps that are done again."""
        if not self.path.is_file():
            return
        for _, record in read_json_lines(self.path, torn_end=True):
            if record.get("step", 0) <= step:
                self.records.append(record)
        if self.main:
            text = "".join(json.dumps(record) + "\n" for record in self.records)
            write_text(self.path, text)

    def step(self, step, record, waited, spent, samples, tokens) -> None:
        """Note one step; `waited` and `spent` in seconds, samples and tokens of all ranks."""
        for name, value in record.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._waited += waited
        self._spent += spent
        self._samples += samples
        self._tokens += tokens
        self._watch(record["loss"])
        self._show(step, record["loss"], self._spent / self._steps)
        if step % self.settings["log"]["interval"] and step != self.settings["max_steps"]:
            return
        means = self._means()
        seconds = self._spent / self._steps
        speed = {
            "data_wait": self._waited / self._spent,
            "samples_per_s": self._samples / self._spent,
            "tokens_per_s": self._tokens / self._spent,
            "memory_gb": memory_gb(),
            "seconds_per_step": seconds,
        }
        self._reset()
        left = seconds * (self.settings["max_steps"] - step)
        losses = "  ".join(f"{k} {v:.4g}" for k, v in means.items())
        self.write({"step": step, "kind": "train", "time": time.time(), **means, **speed})
        if self.main:
            self.close()
            told()
            self.logger.info(
                f"step {step}/{self.settings['max_steps']}  {losses}  | {speed['samples_per_s']:.1f} samples/s  "
                f"{speed['tokens_per_s']:.0f} tokens/s  data wait {100 * speed['data_wait']:.0f} %  "
                f"{speed['memory_gb']:.1f} GB  ETA {_clock(left)}"
            )

    def _means(self) -> dict[str, float]:
        """Per step, and over the ranks: a term of the loss may be there on some only."""
        mine = {name: value / self._steps for name, value in self._sums.items()}
        size = world()[1]
        if size == 1:
            return mine
        every: list = [None] * size
        dist.all_gather_object(every, mine)
        names = list(dict.fromkeys(name for part in every for name in part))
        return {name: sum(part.get(name, 0.0) for part in every) / size for name in names}

    def _show(self, step: int, loss: float, seconds: float) -> None:
        """The bar at the foot of a terminal, at most five times a second."""
        now = time.perf_counter()
        if not (self.main and sys.stderr.isatty()) or now - self._shown < 0.2:
            return
        self._shown, most = now, self.settings["max_steps"]
        filled = int(30 * step / most)
        left = _clock(seconds * (most - step))
        sys.stderr.write(f"\r[{'#' * filled:<30}] {step}/{most}  loss {loss:.4g}  ETA {left}{CLEAR}")
        sys.stderr.flush()

    def close(self) -> None:
        """Take the bar away; a line of the log takes its place."""
        if self.main and sys.stderr.isatty():
            sys.stderr.write(f"\r{CLEAR}")
            sys.stderr.flush()

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Note what validation found."""
        self.write({"step": step, "kind": "validation", "time": time.time(), **metrics})
        if self.main:
            self.close()
            self.logger.info(f"validation at step {step}  {self._headline(metrics)}")
            for name, value in metrics.items():
                if "grounding_rate" in name and value == 0:
                    self.logger.warning(f"{name} is 0: the model answers without ever pointing at anything")
            if time.time() - self._drawn > 60:
                self.draw()

    def _headline(self, metrics: dict[str, float]) -> str:
        """The loss and the task's few numbers; what could not be measured (no such sample) is left out."""
        known = {name: value for name, value in metrics.items() if math.isfinite(value)}
        wanted = ("val_loss", *self.headline)
        chosen = list(dict.fromkeys(name for pattern in wanted for name in known if fnmatchcase(name, pattern)))[:9]
        if len(chosen) < 2:
            chosen += [name for name in known if not name.startswith("val_")][:6]
        rest = len(metrics) - len(chosen)
        more = f"  ({rest} more numbers in {self.path})" if rest else ""
        return "  ".join(f"{name} {readable(known[name])}" for name in chosen) + more

    def write(self, record: dict) -> None:
        """Append a record to `train.jsonl` and to the trackers."""
        self.records.append(record)
        if not self.main:
            return
        with open(self.path, "a") as stream:
            stream.write(json.dumps({k: v if _writable(v) else str(v) for k, v in record.items()}) + "\n")
        prefix = record["kind"]
        scalars = {f"{prefix}/{k}": v for k, v in record.items() if isinstance(v, (int, float)) and k != "step"}
        self.visualizer.add_scalars(scalars, step=record["step"])

    def _watch(self, loss: float) -> None:
        self._same = self._same + 1 if loss == self._last_loss else 0
        self._last_loss = loss
        limit = self.settings["guards"]["constant_loss_steps"]
        if limit and self._same and self._same % limit == 0 and self.main:
            self.logger.warning(f"the loss has been exactly {loss} for {self._same + 1} steps: nothing is trained")

    def draw(self) -> None:
        """Loss and metric curves as `curves.png`."""
        if not (self.main and self.records and self.settings["log"]["curves"]):
            return
        self._drawn = time.time()
        from matplotlib.figure import Figure

        from unimed.files import write_atomic

        skipped = {"step", "kind", "time", "lr", "memory_gb", "seconds_per_step"}
        names = []
        for record in self.records:
            for key, value in record.items():
                if key not in skipped and isinstance(value, (int, float)) and (record["kind"], key) not in names:
                    names.append((record["kind"], key))
        # What never changed is no curve.
        changing = [(kind, key) for kind, key in names if len({r[key] for r in self.records if _has(r, kind, key)}) > 1]
        names = (changing or names)[:16]
        columns = min(4, len(names))
        rows = math.ceil(len(names) / columns)
        figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
        for place, (kind, key) in enumerate(names, start=1):
            chosen = [r for r in self.records if _has(r, kind, key)]
            axes = figure.add_subplot(rows, columns, place)
            axes.plot([r["step"] for r in chosen], [r[key] for r in chosen], marker="." if len(chosen) < 30 else "")
            axes.set_title(f"{kind}: {key}", fontsize=9)
            axes.set_xlabel("step", fontsize=8)
            axes.set_ylabel(key.rsplit("/", 1)[-1], fontsize=8)
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)
        write_atomic(self.curves_path, lambda temporary: figure.savefig(temporary, format="png", dpi=90))


def _has(record: dict, kind: str, key: str) -> bool:
    return record["kind"] == kind and isinstance(record.get(key), int | float)


def readable(value: float) -> str:
    """A number for people: four digits, and counts (whole numbers from 2) as such."""
    whole = isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) >= 2)
    return str(int(value)) if whole else f"{value:.4g}"


def memory_gb() -> float:
    """Peak memory: of the GPU where one is used, else of this process."""
    import resource

    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _writable(value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
