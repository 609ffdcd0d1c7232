"""Cohorts in numbers: `python tests/inference/cohort_numbers.py [engines] [growth] [workers] [faults] [full-disk]
[sources] [ray-faults]`.

- engines: a tiny model on one process, on two, and on Ray with two actors: seconds, rows a second, the same bytes;
- growth: seconds and peak memory of 100 to 100,000 rows that cost nothing; workers: the same 10,000 rows on 1, 2 and 4;
- faults, full-disk, sources, ray-faults: n runs that are killed, cut off or filled, and go on: how many end in the
  bytes of one without faults, and how many records were worked on twice (at most the one in hand of each that was
  killed).
"""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PLACES = [str(HERE), str(HERE.parent), str(HERE / "models" / "grounded"), str(HERE / "models" / "checkpoints")]
sys.path[:0] = PLACES
os.environ["PYTHONPATH"] = os.pathsep.join(PLACES)
os.environ["HF_HUB_OFFLINE"] = "1"

from cohorts import DigestOf, http_server, manifest, run, tree  # noqa: E402


@dataclass
class Slow(DigestOf):
    """Takes as long as `seconds` for a record, so that a kill comes in between."""

    seconds: float = 0.03

    def __call__(self, record, path, folder):
        time.sleep(self.seconds)
        return super().__call__(record, path, folder)


@dataclass
class Nothing:
    """An answer without a look."""

    device: str = "cpu"

    def prepare(self):
        pass

    def __call__(self, record, path, folder):
        return {"answers": [{"text": "nothing", "files": []}]}


@contextlib.contextmanager
def folder():
    place = Path(tempfile.mkdtemp(prefix="cohort-numbers-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def child(*words, wait=True, **options):
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", *map(str, words)], start_new_session=True, **options
    )
    return process.wait() if wait else process


def engines():
    import numpy as np
    from PIL import Image
    from small_models import tiny_model

    with folder() as root:
        tiny_model().save_pretrained(root / "model")
        (root / "in").mkdir()
        rng = np.random.default_rng(0)
        for number in range(120):
            Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(root / f"in/{number:03d}.png")
        print("| engine | workers | s in all | rows a second in all | files the same |\n|---|---|---|---|---|")
        first = None
        for engine, workers in (("local", 1), ("local", 2), ("ray", 2)):
            out, began = root / f"{engine}{workers}", time.perf_counter()
            command = [sys.executable, "-m", "unimed", "predict", str(root / "model"), str(root / "in"), "liver",
                       "--out", str(out), "--engine", engine, "--workers", str(workers), "--part-rows", "10",
                       "--max-new-tokens", "4"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            took = time.perf_counter() - began
            made = tree(out)
            first = first or made
            same = sum(made.get(name) == digest for name, digest in first.items())
            print(f"| {engine} | {workers} | {took:.1f} | {120 / took:.1f} | {same} of {len(first)} |"
                  f"{'' if done.returncode == 0 else done.stderr[-300:]}", flush=True)  # fmt: skip


def rows_table(root, count):
    root.mkdir(parents=True, exist_ok=True)
    (root / "one.png").write_bytes(b"1")
    with open(root / "list.csv", "w") as stream:
        stream.write("path,text\n")
        stream.writelines(f"one.png,question {number}\n" for number in range(count))
    return root / "list.csv"


def growth():
    print("| rows | workers | s | rows a second | MB at most |\n|---|---|---|---|---|")
    for count in (100, 1000, 10_000, 100_000):
        with folder() as root:
            child("grow", root, count, 1)


def workers():
    print("| rows | workers | s | rows a second | MB at most, of this process |\n|---|---|---|---|---|")
    for count in (1, 2, 4):
        with folder() as root:
            child("grow", root, 10_000, count)


def grow(root, count, processes):
    table, began = rows_table(Path(root), int(count)), time.perf_counter()
    report = run(Path(root) / "out", [table], Nothing(), workers=int(processes))
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert report.finished == int(count) and report.failed == 0
    print(f"| {count} | {processes} | {took:.1f} | {int(count) / took:.0f} | {peak:.0f} |", flush=True)


def job(root, out, engine, processes):
    """A cohort of 40 records; exit code 0 where all of them are answered."""
    root = Path(root)
    predictor = Slow(str(root / f"{out}.log"))
    report = run(root / out, [root / "in" / "list.csv"], predictor, part_rows=5, engine=engine, workers=int(processes))
    sys.exit(report.exit_code)


def limited(root, out, kilobytes):
    """The same under a limit of size for every file, which a full disk would be for all of them."""
    limit = int(float(kilobytes) * 1024)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    job(root, out, "local", 1)


def judged(name, root, outs, kills):
    whole, good, twice = tree(root / "whole"), 0, 0
    for out in outs:
        good += tree(root / out) == whole
        worked = DigestOf(str(root / f"{out}.log")).worked()
        twice += len(worked) - len(set(worked))
    print(f"| {name} | {good} of {len(outs)} | {kills} | {twice} |", flush=True)


def prepared(root):
    manifest(root / "in", 40)
    run(root / "whole", [root / "in" / "list.csv"], Slow(str(root / "whole.log"), seconds=0), part_rows=5)


def children_of(pid):
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            if int(place.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(place.parent.name))
    return found


def answered(root, out):
    return len(DigestOf(str(root / f"{out}.log")).worked())


def killed(root, engine, processes, times, what):
    """(outputs, kills): each run is hit when a drawn number of records is done, and started again until it ends."""
    rng, outs, kills = random.Random(0), [], 0
    for number in range(times):
        out = f"{engine}-{what}-{number}"
        outs.append(out)
        for strike in (rng.randint(3, 14), rng.randint(18, 34)):
            process = child("job", root, out, engine, processes, wait=False, stderr=subprocess.DEVNULL)
            while process.poll() is None and answered(root, out) < strike:
                time.sleep(0.01)
            if process.poll() is None:
                if what == "driver":
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait()
                else:
                    victims = worker_pids(root, engine, process.pid)
                    if victims:
                        os.kill(rng.choice(victims), signal.SIGKILL)
                    process.wait()
                kills += 1
        child("job", root, out, engine, processes, stderr=subprocess.DEVNULL)
    return outs, kills


def worker_pids(root, engine, driver):
    if engine == "local":
        names = {pid: Path(f"/proc/{pid}/cmdline").read_text(errors="replace") for pid in children_of(driver)}
        return [pid for pid, name in names.items() if "spawn_main" in name]
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            session = os.getsid(int(place.parent.name))
            if b"MapWorker" in place.read_bytes() and session == os.getsid(driver):
                found.append(int(place.parent.name))
    return found


def faults():
    print("| fault | whole and the same | faults | records worked on twice |\n|---|---|---|---|")
    with folder() as root:
        prepared(root)
        judged("a worker of 2 killed (SIGKILL)", root, *killed(root, "local", 2, 10, "worker"))
        judged("the command of 2 workers killed", root, *killed(root, "local", 2, 10, "driver"))
        judged("the command of one process killed", root, *killed(root, "local", 1, 10, "driver"))
        full = []
        for number in range(10):
            out = f"full-{number}"
            child("limited", root, out, number / 3 + 0.5, stderr=subprocess.DEVNULL)
            child("job", root, out, "local", 1)
            full.append(out)
        judged("no file may grow (EFBIG), then it may", root, full, 10)


def full_disk():
    """Disks in memory that are too small, in a name space of its own (Linux), and then larger ones."""
    print("| a full disk | whole and the same | faults | records worked on twice |\n|---|---|---|---|", flush=True)
    subprocess.run(["unshare", "-rm", sys.executable, __file__, "--child", "disks"])


def disks():
    with folder() as root:
        prepared(root)
        place, outs, stopped = root / "disk", [], 0
        place.mkdir()
        for number in range(20):
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={40 + 16 * number}k", "tmpfs", place], check=True)
            predictor = Slow(str(root / f"disk-{number}.log"), seconds=0)
            with contextlib.suppress(OSError):  # not even the plan finds room
                report = run(place / "out", [root / "in" / "list.csv"], predictor, part_rows=5)
                stopped += bool(report.stopped and report.missing)
            subprocess.run(["mount", "-o", "remount,size=8m", place], check=True)
            run(place / "out", [root / "in" / "list.csv"], predictor, part_rows=5)
            shutil.copytree(place / "out", root / f"disk-{number}")
            outs.append(f"disk-{number}")
            subprocess.run(["umount", place], check=True)
        judged(f"full at another record each time ({stopped} named what is missing)", root, outs, len(outs))


def sources():
    print("| fault of a source | whole and the same | faults | records worked on twice |\n|---|---|---|---|")
    with folder() as root:
        shards(root)
    with folder() as root:
        network(root)


def shards(root):
    names = [f"{number:02d}.png" for number in range(30)]
    with tarfile.open(root / "s.tar", "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 600
            archive.addfile(member, io.BytesIO(name.encode() * 100))
    data, good = (root / "s.tar").read_bytes(), 0
    for number in range(10):
        cut = 1024 + number * 4000
        (root / f"cut-{number}.tar").write_bytes(data[:cut])
        report = run(root / f"out{number}", [root / f"cut-{number}.tar"], DigestOf(str(root / f"log{number}")))
        whole = sum(1536 * place + 512 + 600 <= cut for place in range(30))
        # What is cut through has a row of its own, besides the one that names the loss.
        good += report.finished == report.rows and report.rows - report.failed == whole and report.failed in (1, 2)
    print(f"| a shard cut off: an answer for each whole member, and rows that name the loss | {good} of 10 | 10 | 0 |")


def network(root):
    files = {f"{number}.png": b"%d" % number * 50 for number in range(12)}
    files["list.csv"] = b"url\n" + b"".join(b"%d.png\n" % number for number in range(12))
    good = 0
    with http_server(files) as (url, _):
        run(root / "whole", [f"{url}/list.csv"], DigestOf(str(root / "whole.log")), part_rows=4)
    for number in range(5):
        down = []
        with http_server(files, fails=lambda count, down=down: down and time.monotonic() < down[0]) as (url, asked):
            out, log = root / f"out{number}", str(root / f"log{number}")

            @dataclass
            class Cut(DigestOf):
                def __call__(self, record, path, folder, down=down, number=number):
                    if record.number == 2 * number and not down:
                        down.append(time.monotonic() + 20)
                    return super().__call__(record, path, folder)

            report = run(out, [f"{url}/list.csv"], Cut(log), part_rows=4)
            skip = ("cohort.json", "records.jsonl")  # the port of the server is another
            kept = [{name: d for name, d in tree(place).items() if name not in skip and "run.json" not in name
                     and "cases" not in name} for place in (out, root / "whole")]  # fmt: skip
            good += report.exit_code == 0 and kept[0] == kept[1]
    print(f"| the network gone for 20 s | {good} of 5 | 5 | 0 |", flush=True)


def ray_faults():
    print("| fault on Ray | whole and the same | faults | records worked on twice |\n|---|---|---|---|")
    with folder() as root:
        prepared(root)
        judged("an actor of 2 killed (SIGKILL)", root, *killed(root, "ray", 2, 3, "worker"))
        judged("the command killed", root, *killed(root, "ray", 2, 3, "driver"))


PARTS = {"engines": engines, "growth": growth, "workers": workers, "faults": faults, "full-disk": full_disk,
         "sources": sources, "ray-faults": ray_faults}  # fmt: skip

if __name__ == "__main__":
    if "--child" in sys.argv:
        name, *words = sys.argv[sys.argv.index("--child") + 1 :]
        {"grow": grow, "job": job, "limited": limited, "disks": disks}[name](*words)
    else:
        for name in sys.argv[1:] or PARTS:
            PARTS[name]()
            print(flush=True)
