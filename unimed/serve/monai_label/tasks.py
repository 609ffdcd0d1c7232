"""Long work of MONAI Label's clients as jobs: labels for many images, and adapters trained from submitted ones."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Body, Depends

from unimed.files import read_json_lines, write_atomic
from unimed.inference.asking import Source, ask, kind_of, worded
from unimed.io.write import write_nrrd, write_volume
from unimed.serve.access import owner
from unimed.serve.core import Core, in_thread
from unimed.serve.jobs import ENDED, Job, Jobs
from unimed.serve.monai_label.answers import file_of, grid_of, labeled, numbered, read_label
from unimed.serve.monai_label.datastore import FINAL, ORIGINAL, Datastore, Datastores, remove
from unimed.serve.monai_label.questions import how_of, targets_of
from unimed.serve.pool import streams
from unimed.serve.problems import Problem, busy, missing
from unimed.serve.work import Stopped

STRATEGIES = {
    "first": "first image without a label, by name",
    "random": "any image without a label",
    "uncertainty": "image without a label that the model was least sure of when it drew it",
}
#: What a training may be told: name -> (default, least, most).
CHOICES = {"max_steps": (100, 1, 10_000), "lora_rank": (4, 1, 64), "learning_rate": (1e-3, 1e-6, 1e-1)}
_STATES = {"queued": "RUNNING", "running": "RUNNING", "done": "DONE", "partly": "DONE", "failed": "ERROR",
           "cancelled": "ERROR"}  # fmt: skip
LABEL, TRAIN = "monai-label", "monai-train"
_STOP_S = 120.0


class Tasks:
    """What is done for an owner in the background, and the adapters that came of it.

    Args:
        labels: names that are known beforehand.
        load: opens an exported folder as a model; by default `unimed.load`.
    """

    def __init__(self, core: Core, stores: Datastores, labels: Sequence[str], load: Callable | None = None):
        self.core, self.stores, self.labels, self.load = core, stores, tuple(labels), load or _load
        if core.jobs is not None:
            core.jobs.kinds |= {LABEL: self._label, TRAIN: self._train}
        for who in stores.owners():
            self._serve_adapter(who)

    def names(self, store: Datastore) -> list[str]:
        """Labels known for an owner: those of the server, then those submitted."""
        return list(dict.fromkeys([*self.labels, *store.names()]))

    # -- models -------------------------------------------------------------------------------------------------
    def adapted(self, who: str) -> tuple[str, str] | None:
        """(name that the owner knows, name in the pool) of the adapter of an owner."""
        folder = self._adapter(who)
        if folder is None:
            return None
        base = folder.name.partition(".")[2]
        return f"{base}-adapted", _private(who, base)

    def lane(self, who: str, model: str) -> str:
        """Name in the pool of a model that an owner asks for. Raises Problem 404."""
        adapted = self.adapted(who)
        return adapted[1] if adapted is not None and adapted[0] == model else self.core.pool.name_of(model)

    def _adapter(self, who: str) -> Path | None:
        found = sorted((self.stores.of(who).folder / "adapters").glob("*.*"), key=lambda p: p.stat().st_mtime)
        found = [path for path in found if (path / "config.json").is_file()]
        return found[-1] if found else None

    def _serve_adapter(self, who: str) -> None:
        folder = self._adapter(who)
        if folder is not None:
            self.core.add_model(_private(who, folder.name.partition(".")[2]), lambda: self.load(str(folder)))

    def trainers(self) -> dict:
        """Models that can be trained, with what a client may choose."""
        config = {name: default for name, (default, _, _) in CHOICES.items()}
        pool = self.core.pool
        return {
            name: {"description": "LoRA adapter of submitted labels", "config": config}
            for name in pool.names
            if pool.loaded(name) is None or streams(pool.loaded(name))
        }

    # -- tasks --------------------------------------------------------------------------------------------------
    def newest(self, who: str, kind: str, running: bool = False) -> Job:
        """Raises Problem 404 where there is none."""
        found = [job for job in self.core.jobs.of(who) if job.kind == kind]
        if not found or (running and found[-1].state in ENDED):
            raise missing("task")
        return found[-1]

    def begin(self, who: str, kind: str, request: dict[str, Any]) -> Job:
        """Raises Problem 429 where one is running."""
        for job in self.core.jobs.of(who):
            if job.kind == kind and job.state not in ENDED:
                raise busy("one of these tasks is running for you", 10)
        return self.core.jobs.put(who, kind, request)

    # -- labels for many images ---------------------------------------------------------------------------------
    def _label(self, jobs: Jobs, job: Job) -> None:
        store, asked = self.stores.of(job.owner), job.request
        names = self.names(store)
        done = [n for n, path in store.labels(asked["tag"]).items() if store.info(n, asked["tag"]).get("job") == job.id]
        wanted = _chosen(store, asked["images"])
        job.total, job.done = len(wanted), sum(name in done for name in wanted)
        for name in wanted:
            if name in done:
                continue
            if job.stop.is_set():
                raise Stopped
            try:
                content, uncertainty = jobs.on_model(
                    job, lambda model, name=name: self._drawn(model, store, name, asked, names)
                )
            except Exception as error:  # noqa: BLE001 - one bad image must not end the others
                job.done, job.failed = job.done + 1, job.failed + 1
                job.event("case", case=name, error=type(error).__name__)
                continue
            info = [{"name": label, "idx": number} for label, number in numbered(names).items()]
            store.put_label(name, asked["tag"], ".nrrd", content, {"label_info": info, "job": job.id})
            if uncertainty is not None:
                store.note(name, {"uncertainty": uncertainty})
            job.done += 1
            job.event("case", case=name)

    def _drawn(self, model, store: Datastore, name: str, asked: dict, names: list[str]) -> tuple[bytes, float | None]:
        source = store.opened(self.core, name, asked["model"], site=asked["site"])
        how = {"site": asked["site"], "modality": "", "window": None}
        options = {"max_new_tokens": self.core.settings.max_new_tokens, "task": None}
        found = [one for one in ask(model, source, worded(model, asked["targets"]), how=how, **options)]
        made = labeled(source, found, names)
        return file_of(made), made.uncertainty

    # -- training -----------------------------------------------------------------------------------------------
    def _train(self, jobs: Jobs, job: Job) -> None:
        """Pairs of the datastore -> records -> LoRA -> exported folder, each step a process of its own."""
        store, asked = self.stores.of(job.owner), job.request
        start = jobs.on_model(job, _reference)
        names = self.names(store)
        data, run, out = job.folder / "data", job.folder / "run", job.folder / "model"
        if not data.is_dir():
            with tempfile.TemporaryDirectory(dir=job.folder) as pairs:
                count = self._pairs(store, Path(pairs), names)
                labels = [f"{number}={name}" for number, name in enumerate(names, 1)]
                split = ["0.8", "0.2", "0"] if count >= 5 else ["1", "0", "0"]
                _run(job, "prepare", "folder", f"{pairs}/images", f"{pairs}/masks", "--out", str(data), "--labels",
                     *labels, "--split", *split)  # fmt: skip
        job.total = asked["max_steps"]
        options = [f"max_steps={asked['max_steps']}", f"task.lora=dict(r={asked['lora_rank']})", "num_workers=0",
                   f"optimizer.lr={asked['learning_rate']}", "batch_size=4", "checkpoint.interval=50", "log.interval=1",
                   "validate_interval=0"]  # fmt: skip
        _run(job, "train", "--data", str(data), "--start", start, "--work-dir", str(run), "--resume", "auto",
             "--cfg-options", *options, watch=run / "train.jsonl")  # fmt: skip
        _run(job, "export", str(run / "config.py"), str(run), str(out))
        place = store.folder / "adapters"
        place.mkdir(exist_ok=True, mode=0o700)
        kept = place / f"{job.id}.{asked['model']}"
        os.replace(out, kept)
        self._serve_adapter(job.owner)
        remove(place, keep=[kept])

    def _pairs(self, store: Datastore, folder: Path, names: list[str]) -> int:
        """images/ and masks/ of the submitted labels, whose numbers stand for `names` from 1; returns how many.

        Raises:
            Problem: 400, nothing was submitted, or a label that does not lie on its image.
        """
        count = 0
        for name, path in sorted(store.labels(FINAL).items()):
            source = store.opened(self.core, name)
            try:
                array = _renumbered(read_label(path), store.info(name, FINAL).get("label_info") or [], names)
                _pair(folder, f"case{count}", source, array)
            except (Problem, ValueError) as error:  # its owner deletes or submits this one again
                raise Problem(400, f"label of {name}: {error}") from error
            count += 1
        if not count or not names:
            raise Problem(400, "no label was submitted with names (label_info); nothing to train on")
        return count


def _reference(model) -> str:
    found = str(getattr(model.config, "_name_or_path", ""))
    if not streams(model) or not Path(found).is_dir():
        raise Problem(400, "this model cannot be trained here: serve an exported folder of a grounded model")
    return found


def _renumbered(array: np.ndarray, info: list, names: list[str]) -> np.ndarray:
    """Numbers of a label file as those of `names`; what the file does not name is nothing."""
    table = np.zeros(256, np.uint8)
    for place, entry in enumerate(info, 1):
        if isinstance(entry, dict) and str(entry.get("name", "")).strip() in names:
            number = entry.get("idx", place)
            if isinstance(number, int) and 0 < number < 256:
                table[number] = names.index(str(entry["name"]).strip()) + 1
    return table[array]


def _pair(folder: Path, name: str, source: Source, array: np.ndarray) -> None:
    from PIL import Image

    for part in ("images", "masks"):
        (folder / part).mkdir(exist_ok=True)
    if source.is_volume:
        shape, geometry = source.content.array.shape, grid_of(source)
    else:
        shape, geometry = (*source.content.rgb.shape[1::-1], 1), None
    if array.shape != shape:
        raise Problem(400, f"a label has the shape {array.shape}, its image {shape}")
    if geometry is None:
        for part, pixels in (("images", source.content.pixels), ("masks", array[..., 0].T)):
            target = folder / part / f"{name}.png"
            write_atomic(target, lambda path, pixels=pixels: Image.fromarray(pixels).save(path, "PNG"))
        return
    values = source.content.array
    values = values.astype(np.float32) if values.dtype.kind in "fb" else values
    for part, kept in (("images", values), ("masks", array)):
        if geometry.is_sheared:
            write_nrrd(folder / part / f"{name}.nrrd", kept, geometry)
        else:
            write_volume(folder / part / f"{name}.nii.gz", kept, geometry, labels=part == "masks")


def _run(job: Job, *words: str, watch: Path | None = None) -> None:
    """A verb of `unimed` in a process of its own; it is stopped where the job is, and goes on with the next server.

    Raises:
        Stopped: the job was stopped. RuntimeError: the verb failed; its last line says why.
    """
    log = job.folder / "log.txt"
    command = [sys.executable, "-m", "unimed", *words]
    with open(log, "ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)  # noqa: S603
        try:
            while process.poll() is None:
                if job.stop.wait(0.2):
                    process.send_signal(signal.SIGTERM)
                    raise Stopped
                if watch is not None:
                    job.done = max(job.done, _steps(watch))
                    job.event("progress", step=words[0], step_done=job.done, step_total=job.total)
        finally:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if watch is not None:
        job.done = max(job.done, _steps(watch))
    if process.returncode:
        lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        raise RuntimeError(f"unimed {words[0]}: {lines[-1][:300] if lines else 'no message'}")


def _steps(path: Path) -> int:
    if not path.is_file():
        return 0
    return max((int(row.get("step", 0)) for _, row in read_json_lines(path, torn_end=True)), default=0)


def _chosen(store: Datastore, which: str) -> list[str]:
    if which == "labeled":
        return sorted(store.labels(FINAL))
    return list(store.images()) if which == "all" else store.unlabeled()


def _private(who: str, base: str) -> str:
    return f"adapted-{hashlib.sha256(who.encode()).hexdigest()[:32]}-{base}"


def _load(path: str):
    import unimed

    return unimed.load(path)


def told(job: Job) -> dict:
    """A job as MONAI Label tells of a task."""
    details = [f"{job.state}: {job.done} of {job.total}"] + ([job.error] if job.error else [])
    return {"id": job.id, "status": _STATES[job.state], "start_ts": int(job.created),
            "end_ts": None if job.ended is None else int(job.ended), "details": details,
            "result": {"state": job.state, "done": job.done, "total": job.total, "failed": job.failed}}  # fmt: skip


def task_routes(tasks: Tasks) -> APIRouter:
    router = APIRouter()

    @router.get("/batch/infer", summary="The newest task of labels for many images; 404 where there is none")
    def label_status(check_if_running: bool = False, who: str = Depends(owner)):
        return told(tasks.newest(who, LABEL, check_if_running))

    @router.post("/batch/infer/{model}", summary="Draw labels for many images, tagged `original`")
    async def label(
        model: str, images: str = "unlabeled", run_sync: bool = False, body: dict = Body(default={}),  # noqa: B006, B008
        who: str = Depends(owner),
    ):  # fmt: skip
        if images not in ("all", "labeled", "unlabeled"):
            raise Problem(400, "images is all, labeled or unlabeled", param="images")
        lane, tag = tasks.lane(who, model), str(body.get("label_tag") or ORIGINAL)
        if tag == FINAL:
            raise Problem(400, "labels that a model drew are not tagged final", param="label_tag")
        targets, note = targets_of(body, tasks.names(tasks.stores.of(who)))
        if not targets:
            raise Problem(400, note, param="prompt")
        if kind_of(await in_thread(tasks.core.pool.get, lane)) == "labels":
            raise Problem(400, "this model compares labels and draws nothing", param="model")
        request = {"model": lane, "images": images, "tag": tag, "targets": targets, "site": "", **how_of(body)}
        job = await in_thread(tasks.begin, who, LABEL, request)
        while run_sync and job.state not in ENDED:
            await asyncio.sleep(0.05)
        return told(job)

    @router.delete("/batch/infer", summary="Stop it")
    def label_stop(who: str = Depends(owner)):
        job = tasks.newest(who, LABEL)
        tasks.core.jobs.cancel(job)
        return told(job)

    @router.get("/train/", summary="The newest training; with check_if_running 404 where none runs")
    def train_status(check_if_running: bool = False, who: str = Depends(owner)):
        return told(tasks.newest(who, TRAIN, check_if_running))

    async def train(model: str = "", body: dict = Body(default={}), who: str = Depends(owner)):  # noqa: B006, B008
        chosen = tasks.core.pool.name_of(model or body.get("model") or None)
        given = body | (body[chosen] if isinstance(body.get(chosen), dict) else {})
        values = {name: _number(given.get(name, default), name) for name, (default, _, _) in CHOICES.items()}
        return told(await in_thread(tasks.begin, who, TRAIN, {"model": chosen, **values}))

    router.post("/train/", summary="Train an adapter of the submitted labels")(train)
    router.post("/train/{model}", summary="Train an adapter of one model")(train)

    @router.delete("/train/", summary="Stop it; it is saved first")
    def train_stop(who: str = Depends(owner)):
        job = tasks.newest(who, TRAIN)
        tasks.core.jobs.cancel(job)
        return told(job)

    return router


def _number(value, name: str):
    default, least, most = CHOICES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise Problem(400, f"{name} is a number from {least} to {most}", param=name)
    return type(default)(value)
