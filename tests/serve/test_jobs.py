"""Jobs: folders below one root, uploads, progress, files, cancel, and the next server goes on."""

import inspect
import json
import shutil
import sys
import time

import numpy as np
import pytest
from small_models import tiny_model

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient  # noqa: E402
from serve.serving import application, bearer, png  # noqa: E402

from unimed.geometry import Geometry  # noqa: E402
from unimed.io.write import write_nifti  # noqa: E402


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root" / "study"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    values = np.random.default_rng(0).integers(0, 99, (16, 12, 4)).astype(np.int16)
    write_nifti(folder / "ct.nii.gz", values, Geometry(np.diag([-1.0, -1, 3, 1])))
    return tmp_path / "root"


def wait(client, id_, owner="anna"):
    events = client.get(f"/v1/jobs/{id_}/events", headers=bearer(owner))
    assert events.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in events.text.splitlines()]


def test_a_folder_is_answered_and_its_files_fetched_by_the_owner_alone(tmp_path, root):
    (root / "study" / "broken.png").write_bytes(b"no image")
    with TestClient(application(tmp_path, root=root)) as client:
        body = {"path": "study", "texts": ["segment the nuclei"], "formats": ["html", "nrrd"], "max_new_tokens": 4}
        body["formats"] = ["fhir"]
        made = client.post("/v1/jobs", json=body, headers=bearer("anna"))
        assert made.status_code == 202, made.text
        id_ = made.json()["id"]
        events = wait(client, id_)
        assert events[0]["event"] == "queued" and events[-1]["event"] == "ended" and events[-1]["state"] == "partly"
        assert sum(row["event"] == "case" for row in events) == 5
        result = client.get(f"/v1/jobs/{id_}/result", headers=bearer("anna")).json()
        assert len(result["rows"]) == 4 and len(result["failures"]) == 1 and result["failed"] == 1
        assert str(tmp_path) not in json.dumps(result)
        names = {entry["name"] for entry in result["files"]}
        assert {"0-0.json", "0-0.png", "0-0.fhir.json", "ct-0.json"} <= names
        for name in names:
            got = client.get(f"/v1/jobs/{id_}/files/{name}", headers=bearer("anna"))
            assert got.status_code == 200 and len(got.content) > 0
        for path in ("", "/events", "/result", "/files", "/files/0-0.json"):
            assert client.get(f"/v1/jobs/{id_}{path}", headers=bearer("ben")).status_code == 404
        for name in ("..%2fjob.json", "run.json", ".lock"):
            assert client.get(f"/v1/jobs/{id_}/files/{name}", headers=bearer("anna")).status_code == 404
        assert client.delete(f"/v1/jobs/{id_}", headers=bearer("ben")).status_code == 404
        assert client.delete(f"/v1/jobs/{id_}", headers=bearer("anna")).status_code == 200
        assert list((tmp_path / "state" / "jobs").iterdir()) == []


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "study/../../x", "link", "a\0b", "nothing", "C:\\x"])
def test_paths_stay_below_the_root(tmp_path, root, path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(png())
    (root / "link").symlink_to(tmp_path / "secret")
    with TestClient(application(tmp_path, root=root)) as client:
        answer = client.post("/v1/jobs", json={"path": path, "texts": ["x"]}, headers=bearer("anna"))
        assert answer.status_code in (400, 404) and str(tmp_path) not in answer.text


def test_the_next_server_goes_on_where_the_last_one_was_stopped(tmp_path, root):
    model = tiny_model()
    usual, asked = model.predict, []

    def slow(content, texts, **options):
        asked.append(content.name)
        time.sleep(0.3)
        return usual(content, texts, **options)

    model.predict = slow
    with TestClient(application(tmp_path, model, root=root)) as client:
        body = {"path": "study", "texts": ["segment"], "max_new_tokens": 2}
        id_ = client.post("/v1/jobs", json=body, headers=bearer("anna")).json()["id"]
        while client.get(f"/v1/jobs/{id_}", headers=bearer("anna")).json()["done"] < 1:
            time.sleep(0.02)
        assert client.get(f"/v1/jobs/{id_}/result", headers=bearer("anna")).status_code == 409
    first = len(asked)
    assert 1 <= first < 4
    with TestClient(application(tmp_path, model, root=root)) as client:
        events = wait(client, id_)
        assert "resumed" in [row["event"] for row in events] and events[-1]["state"] == "done"
        assert len(client.get(f"/v1/jobs/{id_}/result", headers=bearer("anna")).json()["rows"]) == 4
    assert len(asked) <= 5  # at most the case that was at work is asked twice


def test_a_running_job_is_cancelled_and_uploads_are_asked_about(tmp_path):
    model = tiny_model()
    usual = model.predict
    model.predict = lambda *a, **k: (time.sleep(0.1), usual(*a, **k))[1]
    with TestClient(application(tmp_path, model)) as client:
        files = [("file", ("a.png", png(5)))]
        image = client.post("/v1/images", files=files, headers=bearer("anna")).json()["id"]
        body = {"images": [image], "texts": ["segment"] * 20, "max_new_tokens": 2}
        assert client.post("/v1/jobs", json=body, headers=bearer("ben")).status_code == 404
        assert client.post("/v1/jobs", json=body | {"path": "x"}, headers=bearer("anna")).status_code == 400
        # A name of Python's is no format: it would be imported and called.
        for form in ("x", "os.system", "../x", "unimed.registry.build", "this.d"):
            reply = client.post("/v1/jobs", json=body | {"formats": [form]}, headers=bearer("anna"))
            assert reply.status_code == 400 and "unknown format" in reply.json()["error"]["message"], form
        assert "this" not in sys.modules
        id_ = client.post("/v1/jobs", json=body | {"texts": ["segment"]}, headers=bearer("anna")).json()["id"]
        other = client.post("/v1/jobs", json=body, headers=bearer("anna")).json()["id"]
        client.post(f"/v1/jobs/{other}/cancel", headers=bearer("anna"))
        assert wait(client, other)[-1]["state"] == "cancelled"
        assert wait(client, id_)[-1]["state"] == "done"


def test_results_of_agents_are_not_asked_about_again(root):
    from unimed.serve.jobs import RESULTS, found_inside
    from unimed.serve.mcp import build_server

    usual = found_inside(root, "study")
    (root / "study" / RESULTS).mkdir()
    shutil.copy(usual[0], root / "study" / RESULTS / usual[0].name)
    assert found_inside(root, "study") == usual
    assert len(found_inside(root, f"study/{RESULTS}")) == 1
    assert inspect.signature(build_server).parameters["out"].default == RESULTS
