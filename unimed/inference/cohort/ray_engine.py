"""Parts of a cohort on Ray Data: actors with a model each, as many as Ray finds place for."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from unimed import threads
from unimed.inference.cohort.parts import PartWorker
from unimed.inference.cohort.plan import Part

#: Variables that the processes of a cluster get from the one that starts the job.
_HANDED_ON = ("UNIMED_", "HF_", "PYTHONPATH")


class RayError(RuntimeError):
    """Ray is not there, or gave the job up."""


def on_ray(
    worker: PartWorker, parts: Sequence[Part], workers: int, threads_each: int, gpus_each: float | None
) -> Iterator[dict]:
    """Outcomes of parts as they are finished.

    The cluster of `RAY_ADDRESS` is used, else the one that runs on this machine, else one is started for the job. All
    its machines must see the sources and the folder of the cohort at the same paths.

    Args:
        workers: actors at most; Ray starts with one and adds others where there is work and room.
        gpus_each: of an actor; None is 1 where the cluster has any and the device is not "cpu".

    Raises:
        RayError: it is not installed, or gave the job up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else lines of its own among ours; its log files stay
    try:
        import numpy as np
        import ray
        import ray.data
    except ImportError as error:
        raise RayError(f"--engine ray needs `pip install unimed[ray]` ({error})") from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers, threads_each)
    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if gpus_each is None:
        wanted = getattr(worker.predictor, "device", "cpu") != "cpu"
        gpus_each = 1 if wanted and ray.cluster_resources().get("GPU") else 0

    class Actor:
        """Made in each actor; the worker travels with the class."""

        def __init__(self):
            self.threads = threads.chosen(threads_each)
            self.threads.__enter__()

        def __call__(self, batch):
            outcomes = [worker(Part(**json.loads(text))) for text in batch["part"]]
            return {"outcome": np.array([json.dumps(outcome) for outcome in outcomes], dtype=object)}

    try:
        source = ray.data.from_items(
            [{"part": json.dumps(asdict(part))} for part in parts], override_num_blocks=len(parts)
        )
        done = source.map_batches(
            Actor, batch_size=1, compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers), num_cpus=1,
            num_gpus=gpus_each or None,
        )  # fmt: skip
        for row in done.iter_rows():
            yield json.loads(row["outcome"])
    except ray.exceptions.RayError as error:
        raise RayError(f"Ray gave the job up: {str(error).strip().splitlines()[-1]}") from error
    finally:
        context.enable_progress_bars = shown
        if ours:
            ray.shutdown()


def _connect(ray, workers: int, threads_each: int) -> None:
    names = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON)}
    counts = {"OMP_NUM_THREADS": str(threads_each), "MKL_NUM_THREADS": str(threads_each)}
    options = {"runtime_env": {"env_vars": names | counts}, "log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS") or "auto"
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:
        if os.environ.get("RAY_ADDRESS"):
            raise RayError(f"no cluster at RAY_ADDRESS={address} ({error})") from None
        # An actor needs a core each; the user said how many there should be.
        ray.init(address="local", num_cpus=max(workers, os.cpu_count() or 1), include_dashboard=False, **options)
