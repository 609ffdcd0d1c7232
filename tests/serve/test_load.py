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
