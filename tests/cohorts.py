"""Predictors of cohorts that cost nothing, and a server that fails on purpose; processes import them by this name."""

import contextlib
import errno
import hashlib
import os
import signal
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from unimed.files import write_text
from unimed.inference.cohort.running import run_cohort


@dataclass
class DigestOf:
    """The digest of a source; every record worked on is noted in `log`, a line each.

    `kills` are record numbers over which the process dies, so often each (noted in `log` too); `full` is the number
    at which the disk is full, until the file `log`.mended is there.
    """

    log: str
    kills: dict = field(default_factory=dict)
    full: int = -1
    interrupt: int = -1
    write: bool = True
    device: str = "cpu"

    def prepare(self):
        pass

    def __call__(self, record, path, folder):
        before = Path(self.log).read_text().count(f"died {record.number}\n") if self.kills else 0
        if before < self.kills.get(record.number, 0):
            self.note(f"died {record.number}")
            os.kill(os.getpid(), signal.SIGKILL)
        mended = Path(self.log + ".mended").exists()
        if record.number == self.full and not mended:
            write_text(folder / f"{record.name}-0.txt", "half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / f"{record.name}-1.txt"))
        digest = hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()
        text = " ".join(record.texts) or "none"
        if self.write:
            write_text(folder / f"{record.name}-0.txt", digest)
        if record.number == self.interrupt and not mended:
            raise KeyboardInterrupt
        self.note(str(record.number))
        files = [f"{record.name}-0.txt"] if self.write else []
        return {"steps": [], "answers": [{"question": text, "text": digest, "files": files}]}

    def note(self, line):
        with open(self.log, "ab", buffering=0) as stream:
            stream.write(line.encode() + b"\n")

    def worked(self):
        """Record numbers in the order in which they were worked on."""
        lines = Path(self.log).read_text().split("\n")[:-1] if Path(self.log).is_file() else []
        return [int(line) for line in lines if not line.startswith("died")]


def run(folder, words, predictor, **options):
    return run_cohort(folder, [str(word) for word in words], predictor, {"kind": "digest"}, **options)


def tree(folder):
    """{place: digest} of everything a cohort delivers; progress tells the time and is left out."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != "progress.jsonl")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def manifest(folder, count):
    """A folder of `count` files and a table of them."""
    (folder / "files").mkdir(parents=True)
    for number in range(count):
        (folder / "files" / f"{number}.png").write_bytes(b"%d" % number)
    rows = "".join(f"files/{number}.png,is it {number}?\n" for number in range(count))
    (folder / "list.csv").write_text("path,text\n" + rows)
    return folder / "list.csv"


@contextlib.contextmanager
def http_server(files, fails=lambda count: False):
    """Serves {name: bytes} with ranges; `fails(number of the request)` says which requests break off. Yields
    (URL, list of paths asked for)."""
    asked, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            with lock:
                asked.append(self.path)
                number = len(asked)
            if fails(number):
                self.close_connection = True
                self.connection.close()
                return
            data = files.get(self.path.lstrip("/").partition("?")[0])
            if data is None:
                self.send_error(404)
                return
            wanted = self.headers.get("Range", "")
            if wanted.startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                self.send_response(206)
                part = data[int(first) : int(last or len(data) - 1) + 1]
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            else:
                self.send_response(200)
                part = data
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", hashlib.sha256(data).hexdigest()[:8])
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(OSError):
                    self.wfile.write(part)

        def log_message(self, *_):
            pass

        def handle(self):
            with contextlib.suppress(OSError, ValueError):
                super().handle()

        def finish(self):
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
