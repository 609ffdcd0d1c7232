"""A run from its plan: everything that decides it is in the plan, and the plan is in the manifest."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unimed.evaluation.benchmarks.declaring import Benchmark, benchmark, data_folder
from unimed.evaluation.contestants.base import Settings, contestant
from unimed.evaluation.harness.checks import baselines, frame_of, leaks_of, trained_on
from unimed.evaluation.harness.frozen import Frozen, read_lines
from unimed.evaluation.harness.judging import judge_of, judged
from unimed.evaluation.harness.manifest import (
    NAME,
    ManifestError,
    code,
    data_digest,
    declaration,
    differences,
    read_manifest,
)
from unimed.evaluation.harness.running import (
    PREDICTIONS,
    Asked,
    RunError,
    Samples,
    ask_all,
    frozen_predictions,
    score,
    seed_all,
    write_run,
)
from unimed.files import FolderLock


@dataclass(frozen=True)
class Plan:
    """What is run.

    Args:
        benchmark: name of a declaration. contestant: `KIND:REFERENCE`, or the folder of a model.
        data: folder of the data; "" for the usual one (`data_folder`).
        against: folder of records that the model was trained on, for the leak check.
        limit: only the first so many cases.
        judge, judge_url: model behind OpenAI's interface that judges statements of reports (RadFact); "" for none. Its
            key is in the environment variable JUDGE_API_KEY.
        resamples: bootstrap samples of intervals. worst: images of worst cases on the page.
        leak_check, baselines, frame_test: whether they are done.
    """

    benchmark: str
    contestant: str
    settings: Settings = field(default_factory=Settings)
    data: str = ""
    against: str = ""
    judge: str = ""
    judge_url: str = ""
    limit: int | None = None
    seed: int = 0
    resamples: int = 500
    worst: int = 12
    leak_check: bool = True
    baselines: bool = True
    frame_test: bool = True

    @property
    def declared(self) -> Benchmark:
        return benchmark(self.benchmark)

    def samples(self, part: str = "test") -> Samples:
        """The cases that are asked, or the training part."""
        one = self.declared
        dataset = one.dataset(self.data or data_folder(one), part)
        return Samples(dataset, self.limit if part == "test" else None)

    def train(self) -> Samples | None:
        """The training part where the benchmark has one and it can be read; else None, with a warning that says why."""
        if self.declared.train is None:
            return None
        try:
            found = self.samples("train")
        except (OSError, ValueError) as error:
            warnings.warn(f"no training part to compare with: {error}", stacklevel=2)
            return None
        return found if len(found) else None

    @classmethod
    def of(cls, values: Mapping) -> Plan:
        """The plan of a manifest.

        Raises:
            ManifestError: fields nobody knows.
        """
        try:
            return cls(**{**values, "settings": Settings(**values["settings"])})
        except (TypeError, KeyError) as error:
            raise ManifestError(f"the manifest holds no plan that this version can repeat: {error}") from None


def usual_folder(plan: Plan) -> Path:
    """Where a run goes if nobody says: below `work_dirs/benchmarks`, by benchmark and contestant."""
    last = plan.contestant.rstrip("/:").split("/")[-1]
    words = "".join(c if c.isalnum() or c in ".-_" else "-" for c in last).strip(".-")
    return Path("work_dirs") / "benchmarks" / plan.benchmark.replace("/", "-") / (words or "run")


def execute(plan: Plan, out: str | Path, *, restart: bool = False, command: str = "") -> tuple[dict, str]:
    """Ask, score and write; returns the manifest and the tables as text.

    Raises:
        RunError: the folder holds a run already, or there is nothing to ask.
        FrameError: boxes are read in a wrong frame; nothing was scored.
    """
    out = Path(out)
    if (out / NAME).exists() and not restart:
        raise RunError(f"{out}: holds a run; choose another folder with --out, or --restart")
    if plan.leak_check and plan.against:
        trained_on(plan.against)  # what is amiss is told before the first question, not after the last
    if plan.judge or plan.judge_url:
        judge_of(plan, out)
    samples, train = plan.samples(), plan.train()
    if not len(samples):
        raise RunError(f"{plan.benchmark}: the data hold no case")
    seed_all(plan.seed)
    one = contestant(plan.contestant, plan.settings)
    if train is not None:
        one.learn(train)
    frame = frame_of(one, plan.contestant) if plan.frame_test else None
    about = {"name": plan.contestant, "identity": dict(one.identity())}
    if frame is not None:
        about["frame"] = asdict(frame)
    settings = {"plan": asdict(plan), **about, "declaration": declaration(plan.declared)}
    with FolderLock(out, "a benchmark"):
        found = ask_all(samples, one, out, settings=settings, batch_size=plan.settings.batch_size, restart=restart)
        return _finish(plan, out, samples, train, found, about, command)


def rescore(run: str | Path, *, command: str = "") -> tuple[dict, str]:
    """Score the frozen predictions of a run again, by the declaration and metrics of today; no model is opened.

    Raises:
        ManifestError, RunError: no run, or the data are not those of it.
    """
    folder, old = read_manifest(run)
    plan = Plan.of(old["plan"])
    samples, train = plan.samples(), plan.train()
    with FolderLock(folder, "a benchmark"):
        found = frozen_predictions(samples, folder / PREDICTIONS)
        if data_digest(found.digests) != old["data"]["content"]:
            warnings.warn(f"{folder}: the data have changed since the run (questions, images or truth)", stacklevel=2)
        return _finish(plan, folder, samples, train, found, old["contestant"], command or old["command"])


def repeat(run: str | Path, out: str | Path | None = None, *, command: str = "") -> tuple[list[dict], Path]:
    """Run again what a manifest says and compare: lines of `manifest.differences`, and the folder of the new run.

    Raises:
        ManifestError: no manifest, or `out` holds another run, which would be lost.
    """
    folder, old = read_manifest(run)
    out = Path(out) if out else folder.with_name(f"{folder.name}-repeated")
    if out.resolve() == folder.resolve():
        raise ManifestError(f"{out}: is the run that is repeated; choose another folder with --out")
    again = (out / NAME).exists()
    if again and read_manifest(out)[1].get("plan") != old["plan"]:
        raise ManifestError(f"{out}: holds another run, which is not overwritten; choose another folder with --out")
    new, _ = execute(Plan.of(old["plan"]), out, restart=again, command=command)
    return differences(old, new, (read_lines(folder / PREDICTIONS), read_lines(out / PREDICTIONS))), out


def _finish(
    plan: Plan, out: Path, samples: Samples, train: Samples | None, found: Asked, about: Mapping, command: str
) -> tuple[dict, str]:
    """Score and write."""
    one, salted = plan.declared, out.absolute().parent
    lines = Frozen(found.lines.values(), str(out / PREDICTIONS))
    scores = score(one, samples, lines, salted, plan.resamples)
    further: dict[str, Sequence[Mapping]] = {}
    if plan.baselines:
        further["Answers that look at no image"] = baselines(one, samples, train, salted, plan.resamples)
    manifest = {
        "benchmark": one.name, "declaration": declaration(one), "contestant": dict(about), "plan": asdict(plan),
        "data": {"folder": plan.data or str(data_folder(one))}, "code": code(), "seed": plan.seed, "command": command,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    if plan.leak_check:
        further["Leaks"], compared = leaks_of(samples, train, plan.against)
        manifest["leaks"] = {"compared with": compared, "known": one.leaks, "found": further["Leaks"]}
        further["Leaks"] = further["Leaks"] or [{"leaks": compared}]
    if plan.judge:
        further["Statements of reports"] = judged(plan, out, samples, lines, salted)
    if about.get("frame"):
        frame = {**about["frame"], "dialects": ", ".join(about["frame"]["dialects"])}
        further["Frame of boxes, by drawn images"] = [frame]
    return write_run(out, one, samples, found, scores, manifest, further, worst=plan.worst, command=command)
