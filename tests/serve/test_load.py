"""A small load and attack; `load.py` runs the large one."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")


def test_sixty_requests_of_an_attack_lose_and_leak_nothing(tmp_path):
    from serve.load import attacked

    found = attacked(tmp_path, 60, 6)
    for name in ("wrong-owner answers", "wrong answers", "let in without token", "bombs taken", "paths taken",
                 "server errors", "files left"):  # fmt: skip
        assert found[name] == 0, found
    assert found["jobs"]["lost"] == found["jobs"]["failed"] == 0 and not found["client errors"], found
    assert found["requests"] == 60 and found["workers killed"] == 1 and found["restarts"] == 1, found


def test_one_request_of_each_kind_alone(tmp_path):
    import random

    import httpx
    from serve.load import KINDS, Attack
    from serve.serving import application, bearer, data_url, png, served
    from small_models import tiny_model

    model, root = tiny_model(), tmp_path / "root"
    root.mkdir()
    with served(application(tmp_path, model, root=root)) as server:
        attack = Attack(server, model, root)
        with httpx.Client(base_url=server.url, headers=bearer("anna"), timeout=60) as client:
            for number, kind in enumerate(KINDS):
                parts = [{"type": "text", "text": "describe"}]
                parts.append({"type": "image_url", "image_url": {"url": data_url(png(1))}})
                body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 8}
                work = getattr(attack, f"_{kind.replace(chr(39), '')}")
                status = work(client, "anna", random.Random(number), 1, "describe", body)
                expected = {"abort": "gone", "job": 202, "study": 202, "token": 401, "bomb": 413, "other's": 404}
                assert status == expected.get(kind, 200) or kind == "path", (kind, status)
        jobs = attack.finish()
    assert jobs == {"lost": 0, "failed": 0, "all": 2}
    wrong = {name: count for name, count in attack.counts.items() if name != "429"}
    assert not wrong and attack.masks and attack.first, wrong
