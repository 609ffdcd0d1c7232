"""Several ranks on this machine: `python -m unimed.engine.launcher --processes 2 tools/train.py CONFIG ...`.

What torchrun does, with what a training on a cluster needs: SIGTERM, SIGUSR1, SIGHUP and
Ctrl-C are passed on to every rank, which saves and ends; a rank that fails or hangs does not leave the others behind;
the error of a rank is one line, printed once; the exit code is that of the ranks (75: stopped and saved).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from unimed.engine.shutdown import INTERRUPTED, PREEMPTED, SIGNALS

#: Seconds that the other ranks get to say what is wrong with them when one has failed.
GRACE_S = 10.0
#: Seconds that ranks get to save and end when they were asked to, or when others have ended.
STOP_TIMEOUT_S = 600.0


class Ranks:
    """The processes of one machine.

    Args:
        command: of every rank.
        processes: how many; a list where machines differ, one number for each.
        nodes, node_rank: number of machines, and which one this is.
        master_addr, master_port: where rank 0 listens; None takes a free port of this machine.
        stop_timeout_s, grace_s: see `STOP_TIMEOUT_S` and `GRACE_S`.
    """

    def __init__(
        self,
        command: list[str],
        processes: int | Sequence[int],
        nodes: int = 1,
        node_rank: int = 0,
        master_addr: str = "127.0.0.1",
        master_port: int | None = None,
        stop_timeout_s: float = STOP_TIMEOUT_S,
        grace_s: float = GRACE_S,
    ):
        counts = [processes] * nodes if isinstance(processes, int) else list(processes)
        if len(counts) != nodes:
            raise ValueError(f"{len(counts)} numbers of processes for {nodes} machines; give one for each")
        self.command, self.count = command, counts[node_rank]
        self.stop_timeout_s, self.grace_s = stop_timeout_s, grace_s
        self.first = sum(counts[:node_rank])
        self.common = {
            "WORLD_SIZE": str(sum(counts)),
            "LOCAL_WORLD_SIZE": str(self.count),
            "MASTER_ADDR": master_addr,
            "MASTER_PORT": str(master_port or _free_port()),
            "UNIMED_LAUNCHER_PID": str(os.getpid()),
        }
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            # One thread per rank unless the user says otherwise: ranks on one machine share its cores.
            self.common[name] = os.environ.get(name, "1")
        self.asked_to_stop = ""
        self._deadline: float | None = None
        self._killed: set[int] = set()
        self.processes: list[subprocess.Popen] = []
        #: What ranks said was wrong with themselves.
        self.told: set[str] = set()

    def run(self) -> int:
        """Start, pass signals on, wait, report; returns the exit code."""
        previous = {n: signal.signal(n, self._pass_on) for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
        try:
            with tempfile.TemporaryDirectory(prefix="unimed-ranks-") as folder:
                self._start(Path(folder))
                self._wait()
                return self._report(Path(folder))
        finally:
            self._kill()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self, folder: Path) -> None:
        for local in range(self.count):
            if self.asked_to_stop:
                return
            rank = self.first + local
            own = {
                "RANK": str(rank),
                "LOCAL_RANK": str(local),
                "UNIMED_ERROR_FILE": str(folder / f"rank_{rank}.json"),
            }
            # A session of its own: Ctrl-C reaches the launcher only, and the rank is ended with all its data workers.
            environment = os.environ | self.common | own
            process = subprocess.Popen(self.command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            self.processes.append(process)

    def _pass_on(self, number: int, frame) -> None:
        self.asked_to_stop = self.asked_to_stop or signal.Signals(number).name
        self._limit(self.stop_timeout_s)
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _limit(self, seconds: float) -> None:
        """From now on ranks have so many seconds left, or fewer where that was said before."""
        end = time.monotonic() + seconds
        self._deadline = end if self._deadline is None else min(end, self._deadline)

    def _wait(self) -> None:
        seen: set[int] = set()
        while any(process.poll() is None for process in self.processes):
            for number, process in enumerate(self.processes):
                if process.poll() is not None and number not in seen:
                    seen.add(number)
                    self._limit(self.stop_timeout_s if process.returncode in (0, PREEMPTED) else self.grace_s)
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._killed |= {n for n, p in enumerate(self.processes) if p.poll() is None}
                self._kill()
            time.sleep(0.05)

    def _kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    process.kill()
                process.wait()

    def _report(self, folder: Path) -> int:
        codes = [process.returncode for process in self.processes]
        if not codes or (self.asked_to_stop and set(codes) <= {0, PREEMPTED}):
            return PREEMPTED if PREEMPTED in codes or not codes else 0
        if set(codes) <= {0, PREEMPTED}:
            return max(codes)
        if self.asked_to_stop and set(codes) <= {0, PREEMPTED, INTERRUPTED}:
            return INTERRUPTED
        told, silent = [], []
        for number, code in enumerate(codes):
            rank, path = self.first + number, folder / f"rank_{self.first + number}.json"
            if path.is_file():
                told.append(json.loads(path.read_text()) | {"rank": rank})
            elif number in self._killed:
                silent.append((rank, code, "did not end in time and was killed"))
            elif code < 0:
                name = signal.Signals(-code).name
                silent.append((rank, code, f"was ended by {name}" + (" (out of memory?)" if code == -9 else "")))
            elif code not in (0, PREEMPTED):
                silent.append((rank, code, f"ended with code {code}"))
        self._print(told, silent)
        failed = [code for code in codes if code > 0 and code != PREEMPTED]
        return failed[0] if failed else 1

    def _print(self, told: list[dict], silent: list[tuple[int, int, str]]) -> None:
        first = [entry for entry in sorted(told, key=lambda entry: entry["time"]) if not entry["other_rank"]]
        crashed = [(rank, text) for rank, _, text in silent if "killed" not in text]
        self.told = {entry["message"] for entry in first}
        if first:
            for message in dict.fromkeys(entry["message"] for entry in first):
                ranks = [entry["rank"] for entry in first if entry["message"] == message]
                # What every rank says, and what rank 0 alone does (it tests and saves), needs no number.
                alone = len(ranks) == 1 and ranks[0] != 0
                print(f"error: rank {ranks[0]}: {message}" if alone else f"error: {message}", file=sys.stderr)
        elif crashed:
            for rank, text in crashed:
                print(f"error: rank {rank} {text}", file=sys.stderr)
        elif told:
            # Those that waited have said for what; who said nothing at all is the one they waited for.
            still = ", ".join(str(rank) for rank, *_ in silent)
            named = f"; rank {still} gave no sign of life and was killed" if still and not self.asked_to_stop else ""
            print(f"error: {told[0]['message']}{named}", file=sys.stderr)
        else:
            after = f" {self.stop_timeout_s:g} s after {self.asked_to_stop}" if self.asked_to_stop else ""
            print(
                f"error: time-out: rank {', '.join(str(r) for r, *_ in silent)} {silent[0][2]}{after}", file=sys.stderr
            )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _counts(word: str) -> list[int]:
    parts = word.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"a number, or one for each machine (4,2), got {word!r}")
    counts = [int(part) for part in parts]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"every machine needs at least one process, got {word}")
    return counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--processes", type=_counts, required=True, metavar="N[,N...]",
        help="ranks on each machine; where machines differ, a number for each: 4,2",
    )  # fmt: skip
    parser.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--master-addr", default="127.0.0.1", help="address of the machine with number 0")
    parser.add_argument("--master-port", type=int, help="its port (default on one machine: a free one)")
    parser.add_argument(
        "--stop-timeout", type=float, default=STOP_TIMEOUT_S, metavar="SECONDS",
        help=f"time for ranks to save when they are asked to stop (default: {STOP_TIMEOUT_S:g})",
    )  # fmt: skip
    parser.add_argument(
        "--grace", type=float, default=GRACE_S, metavar="SECONDS",
        help=f"time for the other ranks when one has failed (default: {GRACE_S:g})",
    )  # fmt: skip
    parser.add_argument(
        "--restarts", type=int, default=0, metavar="N",
        help="start the ranks again so often when they fail; those of other machines are waited for (default: 0)",
    )  # fmt: skip
    parser.add_argument("script", help="what every rank runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(arguments)
    if args.nodes < 1 or args.restarts < 0:
        parser.error(f"--nodes (NNODES) is at least 1 and --restarts at least 0, got {args.nodes} and {args.restarts}")
    if not 0 <= args.node_rank < args.nodes:
        parser.error(
            f"--node-rank (NODE_RANK) is 0 to {args.nodes - 1} for {args.nodes} machines, got {args.node_rank}"
        )
    if args.master_port is not None and not 0 < args.master_port < 65536:
        parser.error(f"--master-port (PORT) is 1 to 65535, got {args.master_port}")
    if args.nodes > 1 and args.master_port is None:
        parser.error("several machines need --master-port")
    if len(args.processes) not in (1, args.nodes):
        parser.error(f"--processes names {len(args.processes)} machines, --nodes {args.nodes}")
    command = [sys.executable, args.script, *args.arguments]
    counts = args.processes[0] if len(args.processes) == 1 else args.processes
    told: set[str] = set()
    for left in range(args.restarts, -1, -1):
        ranks = Ranks(
            command, counts, args.nodes, args.node_rank, args.master_addr, args.master_port,
            args.stop_timeout, args.grace,
        )  # fmt: skip
        code = ranks.run()
        if code in (0, PREEMPTED) or ranks.asked_to_stop or not left:
            break
        if ranks.told and ranks.told == told:
            print("the same error again; the ranks are not started once more", file=sys.stderr, flush=True)
            break
        told = ranks.told
        print(f"the ranks are started again, {left} more times at most", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
