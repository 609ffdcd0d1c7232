"""Ablation grids: every combination of some choices is trained and tested, resumed where it stopped, and compared.

An axis is a dotted config key (`optimizer.lr`), a short name (`SHORT`), or an axis that the config names itself:

    grid = dict(decoder=dict(light={"task.model.mask_config": dict(model_type="unimed_light")}, ...))

Each run is a process of its own, so that its peak memory is its own and a crash ends nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from unimed.engine.config import ConfigError, load_config
from unimed.evaluation.comparing import align, direction, pairs
from unimed.evaluation.tables import read_cases
from unimed.files import plain, read_json, write_report
from unimed.metrics.statistics import bootstrap_mean
from unimed.registry import did_you_mean

#: Short name of an axis -> the options that a value of it stands for.
SHORT = {
    "connector": lambda name: {"task.model.connector": _connector(name)},
    "heads": lambda name: {"task.model.box_head": None if name == "none" else name},
    "backbone": lambda name: {"task.model.backbone": name},
    "dialect": lambda name: {"task.model.dialect": name},
}


def _connector(name: str) -> dict:
    from unimed.models.connectors import named_connector

    return dict(_delete_=True, **named_connector(name))


RESULT, ROWS = "result.json", "scores.jsonl"


@dataclass(frozen=True)
class GridRun:
    """One combination with one seed: its name, values by axis, config options and folder."""

    name: str
    values: Mapping[str, str]
    options: Mapping[str, Any]
    seed: int
    folder: Path

    @property
    def fingerprint(self) -> str:
        """Changes with whatever it is trained with."""
        return hashlib.sha256(json.dumps(plain(self.options), sort_keys=True).encode()).hexdigest()[:16]


def plan(
    config: str | Path,
    over: Mapping[str, Sequence[str]],
    out: str | Path,
    seeds: Sequence[int] = (0,),
    common: Mapping[str, Any] | None = None,
) -> list[GridRun]:
    """Every combination of an axis' values, with every seed.

    Args:
        over: {axis: values}. common: options of all runs.

    Raises:
        ConfigError: an unknown axis or value, or the config itself is wrong.
    """  # fmt: skip
    settings = load_config(config)
    named = settings["grid"].to_dict() if settings["grid"] else {}
    choices = {axis: {value: _options(axis, value, named) for value in values} for axis, values in over.items()}
    runs = []
    for values in product(*choices.values()):
        chosen = dict(zip(choices, values, strict=True))
        name = " ".join(f"{axis}={value}" for axis, value in chosen.items())
        options = dict(common or {})
        for axis, value in chosen.items():
            options |= choices[axis][value]
        for seed in seeds:
            folder = Path(out) / "-".join(_plain_name(value) for value in values) / f"seed_{seed}"
            runs.append(GridRun(name, chosen, options | {"seed": seed}, seed, folder))
    if len({run.folder for run in runs}) < len(runs):
        raise ConfigError("two runs of the grid would share a folder; values of an axis must differ in their letters")
    return runs


def _options(axis: str, value: str, named: Mapping) -> dict:
    if axis in named:
        if value not in named[axis]:
            known = sorted(named[axis])
            raise ConfigError(f"grid: axis {axis} has no value {value!r}{did_you_mean(value, known)} Known: {known}")
        return dict(named[axis][value])
    if axis in SHORT:
        return SHORT[axis](value)
    if "." not in axis and axis not in ("batch_size", "max_steps", "precision"):
        known = sorted({*named, *SHORT})
        raise ConfigError(
            f"grid: unknown axis {axis!r}{did_you_mean(axis, known)} Known: {', '.join(known)}, or a dotted config "
            "key; a config names further ones in `grid`"
        )
    from unimed.engine.config import parse_options

    return parse_options([f"{axis}={value}"])


def _plain_name(value: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in value)


def run_grid(config: str | Path, runs: Sequence[GridRun], tell=print) -> tuple[list[dict], list[dict]]:
    """Run what is not finished; (results of finished runs, {"run", "error"} of those that failed).

    A finished run with the same options is not repeated; one that was interrupted resumes from its checkpoint.
    """
    done, failed = [], []
    for number, run in enumerate(runs, start=1):
        where = f"{number} of {len(runs)}: {run.name}, seed {run.seed}"
        result = _finished(run)
        if result is None:
            tell(where)
            run.folder.mkdir(parents=True, exist_ok=True)
            worker = multiprocessing.get_context("spawn").Process(target=_work, args=(str(config), run))
            worker.start()
            worker.join()
            result = _finished(run)
        else:
            tell(f"{where}: finished before")
        if result is None:
            error = run.folder / "error.txt"
            reason = error.read_text(encoding="utf-8") if error.is_file() else f"ended with code {worker.exitcode}"
            failed.append({"run": run.name, "seed": run.seed, "error": reason})
            tell(f"  failed: {reason}")
        else:
            done.append(result | {"run": run.name, "values": dict(run.values), "seed": run.seed, "folder": run.folder})
    return done, failed


def _finished(run: GridRun) -> dict | None:
    path = run.folder / RESULT
    if not path.is_file() or not (run.folder / "test" / ROWS).is_file():
        return None
    result = read_json(path)
    return result if result.get("fingerprint") == run.fingerprint else None


def _work(config: str, run: GridRun) -> None:
    """In a process of its own: train, export, open, compare, test; `result.json` is written last."""
    log = (run.folder / "log.txt").open("a", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            (run.folder / "error.txt").unlink(missing_ok=True)
            result = _train_and_test(config, run)
        except BaseException as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            (run.folder / "error.txt").write_text(text, encoding="utf-8")
            raise SystemExit(1) from error
    write_report(run.folder / RESULT, result | {"fingerprint": run.fingerprint})


def _train_and_test(config: str, run: GridRun) -> dict:
    from unimed.engine import evaluate, train
    from unimed.engine.report import memory_gb

    # A folder of other options holds a checkpoint of another model.
    clock, mark = _Clock(), run.folder / "options.txt"
    same = mark.is_file() and mark.read_text(encoding="utf-8") == run.fingerprint
    mark.write_text(run.fingerprint, encoding="utf-8")
    trained = train(config, run.folder, "auto" if same else None, run.options)
    if trained["stopped"]:
        raise RuntimeError(f"stopped by {trained['stopped']}; the same command goes on")
    spent = clock.spent("train")
    round_trip, parameters = _round_trip(config, run)
    clock = _Clock()
    metrics = evaluate(config, run.folder, run.folder / "test", run.options)
    spent |= clock.spent("test")
    summary = {k: v for k, v in metrics["summary"].items() if isinstance(v, int | float)}
    return {
        **parameters, "round_trip": round_trip, "loss": trained["loss"], "steps": trained["step"],
        **spent, "memory_gb": memory_gb(), "summary": summary,
    }  # fmt: skip


class _Clock:
    """Seconds from now on, by the clock and of the processor: on a busy machine only the latter say what it costs."""

    def __init__(self):
        self.begin = time.perf_counter(), time.process_time()

    def spent(self, part: str) -> dict[str, float]:
        clock, processor = self.begin
        return {f"seconds_{part}": time.perf_counter() - clock, f"cpu_seconds_{part}": time.process_time() - processor}


def _round_trip(config: str, run: GridRun) -> tuple[bool, dict]:
    """Whether the exported model, opened again, has the losses and predicts what the trained one does; and numbers of
    parameters."""
    import tempfile

    import numpy as np
    import torch

    import unimed
    from unimed.engine import checkpoint as checkpoints
    from unimed.engine.strategy import Strategy
    from unimed.engine.testing import read_all
    from unimed.engine.training import build_collator, build_task

    settings = load_config(config, run.options)
    task = build_task(settings)
    counts = {
        "parameters": sum(p.numel() for p in task.parameters()),
        "trainable": sum(p.numel() for p in task.parameters() if p.requires_grad),
    }
    strategy = Strategy("single", task, torch.device("cpu"), "fp32")
    strategy.load_trained(checkpoints.load_weights(run.folder), run.folder)
    task.eval()
    samples = read_all(settings["test_data"], "test_data")[:4]
    batch, sample = build_collator(settings["collate"], task)(samples), samples[0]
    with tempfile.TemporaryDirectory(dir=run.folder) as folder, torch.no_grad():
        task.export(Path(folder) / "model")
        before, first_losses = task.predict_samples([sample])[0], task(batch)
        task.model = unimed.load(Path(folder) / "model", device="cpu")
        after, losses = task.predict_samples([sample])[0], task(batch)
    # An untrained model may point at nothing; the losses have passed every head.
    equal = all(torch.allclose(first_losses[name], losses[name], rtol=1e-4, atol=1e-6) for name in losses)
    equal &= before.text == after.text and len(before.regions) == len(after.regions)
    for first, second in zip(before.regions, after.regions, strict=False):
        equal &= first.box_xyxy_px == second.box_xyxy_px and first.presence == second.presence
        equal &= (first.mask is None) == (second.mask is None) and (
            first.mask is None or np.array_equal(first.mask, second.mask)
        )
    return bool(equal), counts


def compare(
    results: Sequence[Mapping], metric: str, kind: str | None = None, *, resamples: int = 1000, seed: int = 0
) -> tuple[list[dict], list[dict]]:
    """(a line per combination, the best first; a line per combination against the best).

    The mean is over cases and seeds, its interval resamples patients; `between_seeds` is the range of the means of
    single seeds. Tests are paired over patients, with Holm's correction for their number.

    Raises:
        ComparisonError: no run has a row with the metric.
    """
    fixed = {} if kind is None else {"kind": kind}
    by_name: dict[str, list[Mapping]] = {}
    for result in results:
        by_name.setdefault(result["run"], []).append(result)
    rows = {name: [read_cases(one["folder"] / "test" / ROWS) for one in group] for name, group in by_name.items()}
    aligned = align({name: [row for part in parts for row in part] for name, parts in rows.items()}, metric, **fixed)
    table = []
    for place, (name, group) in enumerate(by_name.items()):
        single = [float(align({name: part}, metric, **fixed).values.mean()) for part in rows[name]]
        mean = bootstrap_mean(aligned.values[place], groups=aligned.groups, resamples=resamples, seed=seed)
        line: dict = {**group[0]["values"], "seeds": len(group), metric: mean}
        if len(group) > 1:
            line["between_seeds"] = f"{min(single):.3f} to {max(single):.3f}"
        for column in ("parameters", "trainable"):
            line[column] = group[0][column]
        for column in ("seconds_train", "seconds_test", "cpu_seconds_train", "cpu_seconds_test"):
            if any(column not in one for one in group):
                continue  # finished before this was written down
            line[column] = round(sum(one[column] for one in group) / len(group), 1)
        line["memory_gb"] = max(one["memory_gb"] for one in group)
        line["round_trip"] = all(one["round_trip"] for one in group)
        table.append((name, line))
    higher = direction(metric) == "higher"
    table.sort(key=lambda item: item[1][metric].value, reverse=higher)
    best = table[0][0]
    against = []
    if len(table) > 1:
        against = [line for line in pairs(aligned, resamples=resamples, seed=seed) if best in line.values()]
    return [line for _, line in table], against
