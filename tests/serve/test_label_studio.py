"""Label Studio's requests, as its ML backend interface documents them."""

import base64
import http.server
import threading

import numpy as np
import pytest
from clinical import unpacked
from small_models import tiny_model

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient  # noqa: E402
from serve.serving import TOKENS, application, bearer, data_url, png, speaking  # noqa: E402

from unimed.serve.label_studio import label_studio_door, read_interface  # noqa: E402

CONFIG = """<View><Image name="picture" value="$scan"/>
<BrushLabels name="tag" toName="picture"><Label value="nuclei"/><Label value="lesion"/></BrushLabels>
<RectangleLabels name="box" toName="picture"><Label value="cell"/><Label value="nuclei"/></RectangleLabels></View>"""


@pytest.fixture(scope="module")
def model():
    return speaking(tiny_model(), "the <p> nuclei </p> [SEG].")


@pytest.fixture(scope="module")
def client(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("label-studio")
    root = folder / "root"
    root.mkdir()
    (root / "a.png").write_bytes(png(1))
    with TestClient(application(folder, model, doors=[label_studio_door], root=root, max_new_tokens=40)) as one:
        yield one


def ask(client, url, context=None, headers=None, config=CONFIG):
    body = {"tasks": [{"id": 7, "data": {"scan": url}}], "project": "1.2", "label_config": config,
            "params": {"login": None, "context": None if context is None else {"result": context}}}  # fmt: skip
    return client.post("/label-studio/predict", json=body, headers=headers or bearer("anna"))


def test_health_setup_and_webhook(client):
    assert client.get("/label-studio/health").json()["status"] == "UP"
    assert client.post("/label-studio/setup", json={"project": "1"}).status_code == 401
    login = base64.b64encode(f"anna:{TOKENS['anna']}".encode()).decode()
    known = client.post("/label-studio/setup", json={"project": "1"}, headers={"Authorization": f"Basic {login}"})
    assert known.json()["model_version"].startswith("tiny")
    wrong = base64.b64encode(f"anna:{TOKENS['ben']}".encode()).decode()
    assert client.post("/label-studio/setup", headers={"Authorization": f"Basic {wrong}"}).status_code == 401
    assert client.post("/label-studio/webhook", json={}, headers=bearer("anna")).status_code == 201


def test_labels_become_questions_and_masks_brushes_that_come_back_exactly(client, model, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    answer = ask(client, data_url(png(1)))
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["results"]
    items = {
        item["value"].get("brushlabels", item["value"].get("rectanglelabels"))[0]: item for item in found["result"]
    }
    assert set(items) == {"nuclei", "lesion", "cell"} and len({item["id"] for item in found["result"]}) == 3
    brush, box = items["nuclei"], items["cell"]
    assert (brush["type"], brush["from_name"], brush["to_name"]) == ("brushlabels", "tag", "picture")
    mask = model.predict(str(tmp_path / "a.png"), "Segment the nuclei.", max_new_tokens=40).regions[0].mask
    drawn = unpacked(brush["value"]["rle"]).reshape(*mask.shape, 4)[..., 3] > 0
    assert mask.any() and (drawn == mask).all()
    assert (box["type"], box["from_name"]) == ("rectanglelabels", "box")
    mask = model.predict(str(tmp_path / "a.png"), "Segment the cell.", max_new_tokens=40).regions[0].mask
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right = 100 * columns[0] / 30, 100 * rows[0] / 40, 100 * (columns[-1] + 1) / 30
    value = box["value"]
    assert (value["x"], value["y"], value["x"] + value["width"]) == pytest.approx((left, top, right))
    assert brush["original_width"] == 30 and brush["original_height"] == 40


def test_a_rectangle_is_cut_out_and_keeps_its_label(client, model):
    box = {
        "type": "rectanglelabels",
        "value": {"x": 20, "y": 25, "width": 50, "height": 50, "rectanglelabels": ["lesion"]},
    }
    (found,) = ask(client, data_url(png(1)), [box]).json()["results"]
    from unimed.io.images import load

    mask = model.segment_boxes(load(png(1), name="x.png"), [(6.0, 10.0, 21.0, 30.0)], ["lesion"]).regions[0].mask
    assert mask.any() and len(found["result"]) == 1
    for item in found["result"]:
        assert item["value"]["brushlabels"] == ["lesion"]
        assert (unpacked(item["value"]["rle"]).reshape(*mask.shape, 4)[..., 3] > 0).sum() == mask.sum()
    bad = {"type": "rectanglelabels", "value": {"x": "a"}}
    assert ask(client, data_url(png(1)), [bad]).status_code == 400
    assert ask(client, data_url(png(1)), "x").status_code == 400
    body = {"tasks": [], "label_config": CONFIG, "params": {"context": "x"}}
    assert client.post("/label-studio/predict", json=body, headers=bearer("anna")).status_code == 400
    point = {"type": "keypointlabels", "value": {"x": 50, "y": 50, "width": 1, "keypointlabels": ["nuclei"]}}
    assert ask(client, data_url(png(1)), [point]).json()["results"][0]["result"][0]["value"]["brushlabels"] == [
        "nuclei"
    ]


def test_images_come_from_the_root_and_from_nowhere_else(client):
    assert ask(client, "/data/local-files/?d=a.png").status_code == 200
    for url in ("/data/local-files/?d=../state/x", "/data/local-files/?d=/etc/passwd", "http://127.0.0.1:1/x.png",
                "file:///etc/passwd", "/data/upload/1/x.png", "", None):  # fmt: skip
        assert ask(client, url).status_code in (400, 404), url


def test_images_of_label_studio_are_fetched_with_its_token_without_redirects(tmp_path, model, monkeypatch):
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:9/secret")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(1))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("UNIMED_LABEL_STUDIO_TOKEN", "abc")
    door = lambda core: label_studio_door(core, address)  # noqa: E731
    try:
        with TestClient(application(tmp_path, model, doors=[door], max_new_tokens=40)) as client:
            assert ask(client, "/data/upload/1/x.png").status_code == 200
            assert seen == [("/data/upload/1/x.png", "Token abc")]
            assert ask(client, f"{address}/away").status_code == 400
            assert ask(client, "http://127.0.0.2/x.png").status_code == 400
            assert not list((tmp_path / "state" / "images").iterdir())
    finally:
        server.shutdown()


def test_interfaces_are_read_without_definitions():
    found = read_interface(CONFIG)
    assert found.names() == ["nuclei", "lesion", "cell"] and found.key == "scan" and found.image == "picture"
    assert found.tag("RectangleLabels", "lesion") is None
    from unimed.serve.problems import Problem

    for text in ("<View", '<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>'):
        with pytest.raises(Problem):
            read_interface(text)
