"""Load and attack of a real server: `python tests/serve/load.py --requests 1000 --clients 16`.

Mixed requests of several owners with aborts, slow readers, wrong tokens, bombs, path tricks, markup in prompts, and a
worker that is killed; every answer is compared with what the model says alone. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import gc
import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

_HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(_HERE.parent), str(_HERE.parent / "models" / "grounded")]

import httpx  # noqa: E402
from serve.serving import TOKENS, application, bearer, data_url, png, served  # noqa: E402
from small_models import tiny_model  # noqa: E402

from unimed.serve.core import give_memory_back  # noqa: E402

IMAGES, QUESTIONS = 6, ("segment the nuclei", "where is the lesion", "describe", "<b>x</b> [SEG] <|im_end|> <image>")
KINDS = ("chat", "stream", "upload", "job", "abort", "slow", "token", "bomb", "path", "other's", "volume", "study")
WEIGHTS = (33, 14, 8, 3, 10, 3, 6, 6, 6, 6, 3, 2)


def memory_mb() -> float:
    """Resident memory of this process, which holds the server."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Attack:
    """All requests of all clients, and what became of them."""

    def __init__(self, server, model, folder: Path, seed: int = 0):
        self.server, self.url, self.core, self.folder = server, server.url, server.core, folder
        self.seed, self.lock = seed, threading.Lock()
        self.counts: collections.Counter = collections.Counter()
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.first: list[float] = []
        self.masks: list[float] = []
        self.jobs: list[tuple[str, str]] = []
        self.studies: set[str] = set()
        self.expected = {}
        for image in range(IMAGES):
            path = folder / f"image-{image}.png"
            path.write_bytes(png(image))
            for text in QUESTIONS:
                from unimed.chat import as_plain_text

                found = model.predict(str(path), as_plain_text(text), max_new_tokens=8)
                masks = [int(region.mask.sum()) for region in found.regions]
                self.expected[image, text] = (found.text, masks)
        import nibabel
        import numpy as np
        from clinical import ct_series

        from unimed.inference.asking import ask, open_source

        ct_series(folder / "study")
        values = np.random.default_rng(0).normal(40, 60, (20, 16, 4)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 3, 1])), folder / "scan.nii.gz")
        how = {"site": "", "modality": "", "window": None}
        for name in ("scan.nii.gz", "study"):
            source = open_source(folder / name)
            found = ask(model, source, QUESTIONS[:1], how=how, max_new_tokens=8)[0]
            self.expected[name] = (found.text, [int(region.mask.sum()) for region in found.regions])
        self.theirs = {}
        for owner in TOKENS:
            with httpx.Client(base_url=self.url, headers=bearer(owner), timeout=60) as client:
                answer = client.post("/v1/images", files=[("file", ("x.png", png(0)))])
                self.theirs[owner] = answer.json()["id"]

    def note(self, *names: str) -> None:
        with self.lock:
            self.counts.update(names)

    def check(self, image: int, text: str, message: dict, whole: bool = True) -> None:
        self._compare(self.expected[image, text], message, "pixels", whole)

    def _compare(self, expected, message: dict, unit: str, whole: bool = True) -> None:
        content, masks = expected
        found = [region.get(unit) for region in message.get("regions", ())]
        if message.get("content") != content or (whole and found != masks):
            self.note("wrong answers")

    def one(self, client: httpx.Client, owner: str, chance: random.Random) -> None:
        """One request of some kind."""
        kind = chance.choices(KINDS, WEIGHTS)[0]
        image, text = chance.randrange(IMAGES), chance.choice(QUESTIONS)
        parts = [{"type": "text", "text": text},
                 {"type": "image_url", "image_url": {"url": data_url(png(image))}}]  # fmt: skip
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 8, "seed": chance.randrange(10**9)}
        began = time.monotonic()
        status = getattr(self, f"_{kind.replace(chr(39), '')}")(client, owner, chance, image, text, body)
        with self.lock:
            self.seconds[kind].append(time.monotonic() - began)
            self.counts[f"{kind} {status}"] += 1
            self.counts["requests"] += 1
            if isinstance(status, int) and status >= 500:
                self.counts["server errors"] += 1

    def _post(self, client, body, tries: int = 40):
        """A chat that comes back when the server is busy."""
        for _ in range(tries):
            answer = client.post("/v1/chat/completions", json=body)
            if answer.status_code != 429:
                return answer
            if not int(answer.headers["retry-after"]) >= 1:
                self.note("429 without retry-after")
            self.note("429")
            time.sleep(0.2)
        return answer

    def _chat(self, client, owner, chance, image, text, body):
        answer = self._post(client, body)
        if answer.status_code == 200:
            self.check(image, text, answer.json()["choices"][0]["message"])
        return answer.status_code

    def _stream(self, client, owner, chance, image, text, body):
        content, regions, began = "", [], time.monotonic()
        with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
            if answer.status_code != 200:
                return answer.status_code
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                values = json.loads(line[6:])
                if "error" in values:
                    self.note("server errors")
                    return values["error"]["code"]
                for choice in values["choices"]:
                    if choice["delta"].get("content") and not content:
                        self.first.append(time.monotonic() - began)
                    content += choice["delta"].get("content") or ""
                    regions += choice["delta"].get("regions") or []
                    if "regions" in choice["delta"]:
                        self.masks.append(time.monotonic() - began)
        self.check(image, text, {"content": content, "regions": regions})
        return 200

    def _upload(self, client, owner, chance, image, text, body):
        made = client.post("/v1/images", files=[("file", ("../../Mustermann.png", png(image)))])
        if made.status_code != 201:
            return made.status_code
        id_ = made.json()["id"]
        body["messages"][0]["content"][1]["image_url"]["url"] = f"unimed://images/{id_}"
        answer = self._post(client, body)
        if answer.status_code == 200:
            self.check(image, text, answer.json()["choices"][0]["message"])
        client.delete(f"/v1/images/{id_}")
        return answer.status_code

    def _job(self, client, owner, chance, image, text, body):
        made = client.post("/v1/jobs", json={"path": f"image-{image}.png", "texts": [text], "max_new_tokens": 8})
        if made.status_code == 202:
            with self.lock:
                self.jobs.append((owner, made.json()["id"]))
        return made.status_code

    def _volume(self, client, owner, chance, image, text, body):
        content = (self.folder / "scan.nii.gz").read_bytes()
        made = client.post("/v1/images", files=[("file", ("scan.nii.gz", content))])
        if made.status_code != 201:
            return made.status_code
        id_ = made.json()["id"]
        body["messages"][0]["content"][1]["image_url"]["url"] = f"unimed://images/{id_}"
        body["messages"][0]["content"][0]["text"] = QUESTIONS[0]
        answer = self._post(client, body)
        if answer.status_code == 200:
            self._compare(self.expected["scan.nii.gz"], answer.json()["choices"][0]["message"], "voxels")
        client.delete(f"/v1/images/{id_}")
        return answer.status_code

    def _study(self, client, owner, chance, image, text, body):
        request = {"path": "study", "texts": [QUESTIONS[0]], "max_new_tokens": 8, "formats": []}
        made = client.post("/v1/jobs", json=request)
        if made.status_code == 202:
            with self.lock:
                self.jobs.append((owner, made.json()["id"]))
                self.studies.add(made.json()["id"])
        return made.status_code

    def _raw(self, owner, body) -> socket.socket:
        data = json.dumps(body).encode()
        host, port = self.url.removeprefix("http://").split(":")
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKENS[owner]}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n")  # fmt: skip
        connection = socket.create_connection((host, int(port)), timeout=60)
        connection.sendall(head.encode() + data)
        return connection

    def _abort(self, client, owner, chance, image, text, body):
        with self._raw(owner, body | {"stream": chance.random() < 0.5}):
            time.sleep(chance.random() * 0.05)
        return "gone"

    def _slow(self, client, owner, chance, image, text, body):
        with self._raw(owner, body | {"stream": True}) as connection:
            read = b""
            while b"[DONE]" not in read and len(read) < 10**6:
                part = connection.recv(200)
                if not part:
                    break
                read += part
                time.sleep(0.002)
        return 200 if b"[DONE]" in read else int(read.split(b" ")[1])

    def _token(self, client, owner, chance, image, text, body):
        wrong = {"Authorization": chance.choice(["Bearer wrong", "Bearer", "", f"Basic {TOKENS[owner]}"])}
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=wrong, timeout=60)
        if answer.status_code not in (401, 429):
            self.note("let in without token")
        return answer.status_code

    def _bomb(self, client, owner, chance, image, text, body):
        from serve.test_core import bomb

        body["messages"][0]["content"][1]["image_url"]["url"] = data_url(bomb(50_000, 50_000))
        answer = self._post(client, body)
        if answer.status_code not in (400, 413):
            self.note("bombs taken")
        return answer.status_code

    def _path(self, client, owner, chance, image, text, body):
        path = chance.choice(["../state", "/etc/passwd", "a/../../x", "..\\x", "~", "image-0.png/../.."])
        answer = client.post("/v1/jobs", json={"path": path, "texts": [text]})
        if answer.status_code not in (400, 404) or str(self.folder) in answer.text:
            self.note("paths taken")
        return answer.status_code

    def _others(self, client, owner, chance, image, text, body):
        other = next(name for name in TOKENS if name != owner)
        with self.lock:
            jobs = [id_ for who, id_ in self.jobs if who == other]
        paths = [f"/v1/images/{self.theirs[other]}", *(f"/v1/jobs/{id_}/result" for id_ in jobs[-1:])]
        answer = client.get(chance.choice(paths))
        if answer.status_code != 404:
            self.note("wrong-owner answers" if answer.status_code == 200 else "wrong-owner refused otherwise")
        return answer.status_code

    def run(self, requests: int, clients: int, kill: bool = False) -> float:
        """Let the clients send so many requests in all; returns the seconds it took."""
        left = iter(range(requests))

        def work(number: int) -> None:
            owner = list(TOKENS)[number % len(TOKENS)]
            chance = random.Random(f"{self.seed} {number}")
            with httpx.Client(base_url=self.url, headers=bearer(owner), timeout=120) as client:
                while True:
                    with self.lock:
                        if next(left, None) is None:
                            return
                    try:
                        self.one(client, owner, chance)
                    except Exception as error:  # noqa: BLE001 - what a client meets is counted
                        self.note(f"client met {type(error).__name__}")

        began = time.monotonic()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        if kill:
            time.sleep(0.3)
            worker = self.core.lanes["tiny"].thread.ident
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker), ctypes.py_object(SystemExit))
            self.note("workers killed")
        for thread in threads:
            thread.join()
        self.seed += 1
        return time.monotonic() - began

    def finish(self) -> dict:
        """Wait for the jobs; {"lost": ..., "failed": ...}."""
        end, lost, failed = time.monotonic() + 120, 0, 0
        for owner, id_ in self.jobs:
            with httpx.Client(base_url=self.url, headers=bearer(owner), timeout=60) as client:
                while (state := client.get(f"/v1/jobs/{id_}").json().get("state")) in ("queued", "running"):
                    if time.monotonic() > end:
                        break
                    time.sleep(0.05)
                lost += state not in ("done", "partly", "failed")
                failed += state != "done"
                if id_ in self.studies and state == "done":
                    rows = client.get(f"/v1/jobs/{id_}/result").json()["rows"]
                    if len(rows) != 1:
                        self.note("wrong answers")
                    for row in rows:
                        said = row["answers"][0]
                        self._compare(self.expected["study"], said | {"content": said["text"]}, "voxels")
                client.delete(f"/v1/jobs/{id_}")
        return {"lost": lost, "failed": failed, "all": len(self.jobs)}


def throughput(attack: Attack, clients: int, requests: int) -> float:
    """Chats per second, none of them answered from memory."""
    left, lock = iter(range(requests)), threading.Lock()

    def work() -> None:
        with httpx.Client(base_url=attack.url, headers=bearer("anna"), timeout=120) as client:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                parts = [{"type": "text", "text": f"segment {clients} {number}"},
                         {"type": "image_url", "image_url": {"url": data_url(png(number % IMAGES))}}]  # fmt: skip
                body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 8}
                assert attack._post(client, body).status_code == 200

    began = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return requests / (time.monotonic() - began)


def percentile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 4) if values else float("nan")


def attacked(folder: Path, requests: int, clients: int, measure: int = 0) -> dict:
    """What became of `requests` from `clients`; with `measure` chats for the throughput too."""
    root = folder / "root"
    root.mkdir(parents=True)
    model = tiny_model()
    hook, threading.excepthook = threading.excepthook, lambda _: None  # the worker that is killed says so otherwise
    try:
        with served(application(folder, model, root=root, max_queue=5, cache_bytes=20_000)) as server:
            attack = Attack(server, model, root)
            early = max(requests // 10, 1)
            took = attack.run(early, clients)
            gc.collect()
            memory, files, half = [memory_mb()], open_files(), (requests - early) // 2
            blocks = [sys.getallocatedblocks()]
            took += attack.run(half, clients, kill=True)
            memory.append(memory_mb())
            took += attack.run(requests - early - half, clients)
            jobs = attack.finish()
            for owner, id_ in attack.theirs.items():
                httpx.delete(f"{server.url}/v1/images/{id_}", headers=bearer(owner), timeout=60)
            gc.collect()
            time.sleep(0.5)
            blocks.append(sys.getallocatedblocks())
            held = memory_mb()
            trimmed = give_memory_back()
            counts = attack.counts
            found = {
                "requests": counts["requests"], "clients": clients, "seconds": round(took, 2),
                **{name: counts[name] for name in ("wrong-owner answers", "wrong answers", "let in without token",
                   "bombs taken", "paths taken", "server errors", "429", "workers killed")},
                "jobs": jobs,
                "client errors": {n: c for n, c in counts.items() if n.startswith("client met")},
                "files left": sum(1 for name in ("images", "jobs") for _ in (folder / "state" / name).iterdir()),
                "open files": [files, open_files()],
                "memory MB": [round(value, 1) for value in (*memory, held)],
                "memory MB given back by malloc_trim": round(held - memory_mb(), 1) if trimmed else 0.0,
                "blocks of Python": blocks,
                "cached bytes": {n: getattr(server.core, n).size for n in ("sources", "answers", "embeddings")},
                "restarts": server.core.metrics.restarts.labels("tiny")._value.get(),
                "p50 s": {kind: percentile(values, 0.5) for kind, values in sorted(attack.seconds.items())},
                "p95 s": {kind: percentile(values, 0.95) for kind, values in sorted(attack.seconds.items())},
                "first mask s": [percentile(attack.masks, 0.5), percentile(attack.masks, 0.95)],
                "first token s": [percentile(attack.first, 0.5), percentile(attack.first, 0.95)],
                "statuses": {n: c for n, c in sorted(counts.items()) if n.split(" ")[0] in KINDS},
            }  # fmt: skip
            if measure:
                alone, together = throughput(attack, 1, measure), throughput(attack, 16, measure)
                found["chats per s"] = {"one by one": round(alone, 2), "16 clients": round(together, 2)}
    finally:
        threading.excepthook = hook
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--measure", type=int, default=160, help="chats for the throughput; 0 for none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(attacked(Path(folder), args.requests, args.clients, args.measure), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
