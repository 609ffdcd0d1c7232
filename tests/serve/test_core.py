"""What every door shares: batches, limits, owners, time-outs, workers that die, what is logged."""

import io
import json
import logging
import threading
import time
import zlib

import numpy as np
import pytest
from small_models import tiny_model

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient  # noqa: E402
from serve.serving import TOKENS, application, bearer, data_url, png, served, settings  # noqa: E402

from unimed.inference.asking import open_source  # noqa: E402
from unimed.io.limits import Limits  # noqa: E402
from unimed.serve.metrics import Metrics  # noqa: E402
from unimed.serve.pool import ModelPool  # noqa: E402
from unimed.serve.problems import Problem  # noqa: E402
from unimed.serve.settings import owner_of, read_tokens, token_digest  # noqa: E402
from unimed.serve.store import Cache, ImageStore  # noqa: E402
from unimed.serve.work import Lane, Question, Ticket, answer, stable_text  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def sources(tmp_path):
    for number, size in enumerate([(40, 30), (25, 60), (64, 64)]):
        (tmp_path / f"{number}.png").write_bytes(png(number, size))
    return [open_source(tmp_path / f"{number}.png") for number in range(3)]


def chat(client, text="segment", image=0, owner="anna", **more):
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": data_url(png(image))}}]
    body = {"messages": [{"role": "user", "content": parts}], **more}
    return client.post("/v1/chat/completions", json=body, headers=bearer(owner))


def question(source, text="segment", **more):
    return Question("anna", text, source, str(id(source)), options=(("max_new_tokens", 6),), **more)


def test_answers_of_a_batch_are_those_alone(model, sources):
    questions = [question(sources[n % 3], f"segment the nuclei{' now' * n}") for n in range(6)]
    questions.append(question(sources[0], "again", history=(("user", "segment"), ("assistant", "there is no lesion"))))
    together = answer(model, [Ticket(q) for q in questions])
    for one, q in zip(together, questions, strict=True):
        (alone,) = answer(model, [Ticket(q)])
        assert alone.prediction.text == one.prediction.text and alone.tokens == one.tokens == 6
        for a, b in zip(alone.prediction.regions, one.prediction.regions, strict=True):
            assert (a.mask == b.mask).all()


def lane(tmp_path, model, **changes):
    return Lane("tiny", ModelPool({"tiny": lambda: model}), settings(tmp_path, **changes), Metrics(), Cache(2**20))


def test_what_waits_is_answered_together_and_one_that_fails_does_not_spoil_the_others(tmp_path, model, sources):
    one = lane(tmp_path, model)
    gate, sizes = threading.Event(), []
    usual = model._predict_images
    model._predict_images = lambda images, *a, **k: (sizes.append(len(images)), usual(images, *a, **k))[1]
    try:
        first = Ticket(call=lambda _: gate.wait(10))
        one.add(first)
        tickets = [Ticket(question(source)) for source in sources]
        tickets.insert(1, Ticket(question(sources[0], "x " * 5000)))  # longer than the model reads
        for ticket in tickets:
            one.add(ticket)
        gate.set()
        with pytest.raises(ValueError, match="tokens"):
            tickets.pop(1).future.result(20)
        assert all(ticket.future.result(20).tokens == 6 for ticket in tickets)
    finally:
        del model._predict_images
        one.close(5)
    assert sizes[0] == 4 and sizes[1:] == [1] * 4


def test_a_full_queue_says_when_to_come_back_and_cancelled_ones_leave_it(tmp_path, model, sources):
    one = lane(tmp_path, model, max_queue=2)
    gate = threading.Event()
    one.add(Ticket(call=lambda _: gate.wait(10)))
    time.sleep(0.1)
    waiting = [Ticket(question(sources[0], str(n))) for n in range(2)]
    for ticket in waiting:
        one.add(ticket)
    with pytest.raises(Problem) as caught:
        one.add(Ticket(question(sources[0])))
    assert caught.value.status == 429 and int(caught.value.headers["Retry-After"]) >= 1
    waiting[0].cancel()
    waiting[1].start_by = 0
    one.watch()
    assert [ticket.future.exception(5).status for ticket in waiting] == [499, 504]
    gate.set()
    one.close(5)
    with pytest.raises(Problem, match="closing"):
        one.add(Ticket(question(sources[0])))


def test_work_nobody_waits_for_ends_at_the_next_token(tmp_path, model, sources):
    one = lane(tmp_path, model)
    ticket = Ticket(Question("anna", "segment", sources[0], "x", options=(("max_new_tokens", 100_000),)))
    one.add(ticket)
    while not ticket.tokens:
        time.sleep(0.01)
    ticket.cancel()
    assert ticket.future.exception(10).status == 499 and ticket.tokens < 50_000
    late = Ticket(Question("anna", "segment", sources[0], "x", options=(("max_new_tokens", 100_000),)))
    late.deadline = time.monotonic() + 0.3
    one.add(late)
    assert late.future.exception(10).status == 504
    one.close(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_dead_worker_had_is_tried_once_more(tmp_path, model, sources):
    one, deaths = lane(tmp_path, model), []
    usual = model._predict_images

    def dying(*a, **k):
        if len(deaths) < 1 or k["history"][0]:
            deaths.append(1)
            raise SystemExit
        return usual(*a, **k)

    model._predict_images = dying
    try:
        fine = Ticket(question(sources[0]))
        one.add(fine)
        end = time.monotonic() + 20
        while not fine.future.done() and time.monotonic() < end:
            one.watch()
            time.sleep(0.02)
        assert fine.future.result(0).tokens == 6
        deadly = Ticket(question(sources[0], history=(("user", "x"), ("assistant", "y"))))
        one.add(deadly)
        while not deadly.future.done() and time.monotonic() < end:
            one.watch()
            time.sleep(0.02)
        assert deadly.future.exception(0).status == 500
    finally:
        del model._predict_images
    one.close(5)


def test_nobody_reads_what_belongs_to_others(tmp_path, model):
    with TestClient(application(tmp_path, model)) as client:
        made = client.post("/v1/images", files=[("file", ("name of a patient.png", png()))], headers=bearer("anna"))
        id_ = made.json()["id"]
        assert made.status_code == 201 and "patient" not in made.text
        known = client.get(f"/v1/images/{id_}", headers=bearer("anna")).json()
        assert known["kind"] == "image" and known["shape"] == [40, 30]
        for method in ("get", "delete"):
            assert getattr(client, method)(f"/v1/images/{id_}", headers=bearer("ben")).status_code == 404
            assert getattr(client, method)(f"/v1/images/{id_}").status_code == 401
        assert client.get("/v1/images", headers=bearer("ben")).json()["data"] == []
        image = {"type": "image_url", "image_url": {"url": f"unimed://images/{id_}"}}
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, image]}]}
        assert client.post("/v1/chat/completions", json=body, headers=bearer("ben")).status_code == 404
        assert client.post("/v1/chat/completions", json=body, headers=bearer("anna")).status_code == 200
        assert len(client.app.state.core.sources) == 1
        assert client.delete(f"/v1/images/{id_}", headers=bearer("anna")).status_code == 200
        assert len(client.app.state.core.sources) == 0 and len(client.app.state.core.answers) == 0
        assert list((tmp_path / "state" / "images").iterdir()) == []
        for path in ("/capabilities", "/metrics", "/v1/models", "/v1/jobs"):
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/healthz").json() == {"status": "ok"}


def test_the_same_question_again_is_answered_from_memory_for_its_owner_alone(tmp_path, model):
    asked = []
    usual = model._predict_images
    model._predict_images = lambda *a, **k: (asked.append(1), usual(*a, **k))[1]
    try:
        with TestClient(application(tmp_path, model)) as client:
            first, again, other = (chat(client, owner=who).json() for who in ("anna", "anna", "ben"))
            assert first["choices"] == again["choices"] == other["choices"] and len(asked) == 2
            chat(client, temperature=1.0, seed=1)
            assert chat(client, temperature=1.0, seed=1).status_code == 200 and len(asked) == 4
            text = client.get("/metrics", headers=bearer("anna")).text
    finally:
        del model._predict_images
    assert 'unimed_cache_total{cache="answers",result="hit"} 1.0' in text and "unimed_first_token_seconds" in text


def bomb(width, height) -> bytes:
    """A PNG of a few kilobytes whose header claims this size."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


def test_bombs_are_refused_before_they_take_memory(tmp_path, model):
    limits = Limits(10**6, 10**7, 10**6)
    with TestClient(application(tmp_path, model, limits=limits, max_body_bytes=2 * 10**6)) as client:

        def put(name, content):
            return client.post("/v1/images", files=[("file", (name, content))], headers=bearer("anna"))

        assert put("x.png", bytes(1_500_000)).status_code == 413
        assert put("x.png", bytes(3_000_000)).status_code == 413
        assert put("x.png", b"").status_code == 400
        header = np.zeros(0, np.uint8)
        stream = io.BytesIO()
        np.save(stream, header)
        for name, content in (("a.png", bomb(60_000, 60_000)), ("b.nii.gz", zlib.compress(bytes(9**8), wbits=31))):
            id_ = put(name, content).json()["id"]
            began = time.monotonic()
            assert client.get(f"/v1/images/{id_}", headers=bearer("anna")).status_code in (400, 413)
            assert time.monotonic() - began < 5

        def longer_than_allowed():
            yield from [bytes(100_000)] * 30

        assert (
            client.post("/v1/chat/completions", content=longer_than_allowed(), headers=bearer("anna")).status_code
            == 413
        )
        deep = "[" * 100_000
        assert client.post("/v1/chat/completions", content=deep, headers=bearer("anna")).status_code == 400


def test_names_and_hosts_lead_nowhere(tmp_path, model):
    with TestClient(application(tmp_path, model)) as client:
        for name in ("../../x.png", "/etc/x.png", "a\\..\\b.png", ".hidden.png", "c\x00n.png"):
            made = client.post("/v1/images", files=[("file", (name, png()))], headers=bearer("anna"))
            assert made.status_code in (201, 400)
        inside = {p for p in tmp_path.rglob("*.png")}
        assert all((tmp_path / "state" / "images") in path.parents for path in inside)
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 400
        assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
        body = '{"messages": [{"role": "\\ud83d", "content": "x"}], "model": "\\ud83d"}'
        assert client.post("/v1/chat/completions", content=body, headers=bearer("anna")).status_code == 400
        assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]
        form = {"Content-Type": "application/x-www-form-urlencoded", **bearer("anna")}  # what `curl -d` sends
        error = client.post("/v1/chat/completions", content="{}", headers=form).json()["error"]
        assert error["message"].startswith("the body: ") and "Content-Type: application/json" in error["message"]


def test_the_log_tells_nothing_of_patients(tmp_path, model):
    from unimed.serve.traffic import JsonLines

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    log = logging.getLogger("unimed.serve")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with TestClient(application(tmp_path, model)) as client:
            made = client.post("/v1/images", files=[("file", ("Mustermann.png", png()))], headers=bearer("anna"))
            client.get(f"/v1/images/{made.json()['id']}?x=Mustermann", headers=bearer("anna"))
            chat(client, "has Mustermann a lesion?")
            client.get("/v1/Mustermann")
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [row["status"] for row in rows] == [201, 200, 200, 404] and rows[1]["route"] == "/v1/images/{id_}"
    assert not any(word in stream.getvalue() for word in ("Mustermann", made.json()["id"], *TOKENS.values()))


def test_a_failure_is_logged_as_a_line_without_the_text_of_its_error(tmp_path, model):
    import httpx

    from unimed.serve.traffic import log_to

    def door(core):
        def add(app):
            @app.get("/broken")
            def broken():
                raise RuntimeError("Mustermann")

        return add

    logs = [logging.getLogger(name) for name in ("unimed.serve", "uvicorn.error")]
    with served(application(tmp_path, model, doors=[door])) as server:
        before = [(log.handlers[:], log.level, log.propagate) for log in logs]
        stream = io.StringIO()
        log_to(stream)
        try:
            assert httpx.get(f"{server.url}/broken", headers=bearer("anna")).status_code == 500
        finally:
            for log, (handlers, level, propagate) in zip(logs, before, strict=True):
                log.handlers[:], log.propagate = handlers, propagate
                log.setLevel(level)
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {row.get("error") for row in rows} == {None, "RuntimeError"} and "Mustermann" not in stream.getvalue()


def test_errors_of_the_framework_have_the_shape_of_all_others(tmp_path, model):
    with TestClient(application(tmp_path, model)) as client:
        multipart = {**bearer("anna"), "content-type": "multipart/form-data; boundary=x"}
        for reply, status in [
            (client.post("/v1/images", content=b"--y", headers=multipart), 400),
            (client.post("/v1/jobs", content=b"\xff{", headers=bearer("anna")), 400),
            (client.delete("/healthz", headers=bearer("anna")), 405),
        ]:
            assert reply.status_code == status and reply.json()["error"]["message"]


def test_idle_uploads_and_models_go(tmp_path):
    store = ImageStore(tmp_path / "images", 10_000)
    one, other = (store.put("anna", [("a.png", png(n))]) for n in range(2))
    with store.held("anna", one.id):
        assert store.reap(-1) == 1
    assert [stored.id for stored in ImageStore(tmp_path / "images", 10_000).of("anna")] == [one.id] != [other.id]
    with pytest.raises(Problem, match="kept"):
        store.put("anna", [("a.png", bytes(9_999))])
    pool = ModelPool({"a": object})
    assert pool.get("a") is pool.get("a") and pool.reap(60) == [] and pool.reap(-1) == ["a"]
    assert pool.loaded("a") is None
    cache = Cache(100)
    for number in range(5):
        cache.put((number,), number, 40)
    assert len(cache) == 2 and cache.get((4,)) == 4 and cache.get((0,)) is None and cache.size == 80


def test_tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# users\nanna 0123456789abcdef\nben fedcba9876543210\n")
    tokens = read_tokens(path)
    assert tokens[token_digest("0123456789abcdef")] == "anna"
    assert owner_of("fedcba9876543210", tokens) == "ben" and owner_of("x", tokens) is None
    assert owner_of(None, {}) == "local"
    for text in ("anna short", "anna", "", "anna 0123456789abcdef\nben 0123456789abcdef"):
        path.write_text(text)
        with pytest.raises(ValueError, match="tokens"):
            read_tokens(path)


def test_stable_text():
    assert [stable_text(text) for text in ("", "the", "the liv", "the liver ")] == ["", "", "the", "the liver"]


def test_slow_bodies_and_slow_readers_are_let_go(tmp_path, model):
    import socket

    from serve.serving import served

    with served(application(tmp_path, model, body_timeout_s=0.3, send_timeout_s=0.3, max_in_flight=1)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n"
            connection.sendall(f"{head}Authorization: Bearer {TOKENS['anna']}\r\n\r\n{{".encode())
            time.sleep(0.1)
            import httpx

            busy = httpx.get(f"{server.url}/v1/models", headers=bearer("anna"))
            assert busy.status_code == 429 and busy.headers["retry-after"] == "1"
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            assert b" 408 " in connection.recv(1000).split(b"\r\n")[0]
        assert httpx.get(f"{server.url}/v1/models", headers=bearer("anna")).status_code == 200


def test_masks_of_callers_are_no_bombs():
    from unimed.serve.regions import region_of

    mask = {"size": [30_000, 30_000], "counts": [900_000_000]}
    for bad in ({"mask": mask}, {"mask": {"size": [2, 2], "counts": "~~"}}, {"mask": 3}, {"box_xyxy": [0, 0, 1]}, {},
                {"box_xyxy": [0, 0, "nan", 1]}):  # fmt: skip
        with pytest.raises(Problem):
            region_of(bad, "it")
    assert region_of({"box_xyxy": [0, 0, 2, 3]}, "it").box_xyxy_px == (0, 0, 2, 3)


def test_an_image_is_encoded_once_for_several_questions_with_the_same_answers(tmp_path, model):
    encoded, usual = [], model.mask_head.encode
    model.mask_head.encode = lambda pixels: (encoded.append(len(pixels)), usual(pixels))[1]
    try:
        alone = [model.predict(_saved(tmp_path, n), f"question {k}", max_new_tokens=8) for n in (0, 1) for k in (0, 1)]
        encoded.clear()
        with TestClient(application(tmp_path, model)) as client:
            core = client.app.state.core
            for n, k, expected in zip((0, 0, 1, 1), (0, 1, 0, 1), alone, strict=True):
                message = chat(client, f"question {k}", n).json()["choices"][0]["message"]
                assert message["content"] == expected.text
                masks = [int(region.mask.sum()) for region in expected.regions]
                assert [region["pixels"] for region in message["regions"]] == masks
            assert sum(encoded) == 2 and len(core.embeddings) == 2 and core.embeddings.size > 0
            core.forget(core.images.put("anna", [("x.png", png(0))]))  # deleting leaves nothing of it
            assert len(core.embeddings) == 0
    finally:
        model.embedding_cache = None
        del model.mask_head.encode


def _saved(folder, number):
    path = folder / f"{number}.png"
    path.write_bytes(png(number))
    return str(path)


def test_pages_of_elsewhere_start_nothing_on_a_server_without_tokens(tmp_path, model):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    app = application(tmp_path, model, tokens=False, origins=("http://viewer.example",))
    with TestClient(app) as client:
        for origin, status in (("http://evil.example", 403), ("null", 403), ("http://testserver", 200), (None, 200),
                               ("http://viewer.example", 200)):  # fmt: skip
            headers = {} if origin is None else {"Origin": origin}
            assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == status, origin
        assert client.get("/v1/models", headers={"Origin": "http://evil.example"}).status_code == 200
