"""`push_to_hub` against a stand-in of the hub: what lies there afterwards opens and answers as before."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import unimed
from unimed.data.licenses import Source, write_sources
from unimed.models.starting.grounded_small import build_tiny

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


class Hub(BaseHTTPRequestHandler):
    """The calls that `create_repo` and `upload_folder` make; files go through LFS or lie in the commit."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, values, code=200) -> None:
        text = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        store = self.server.store
        store["asked"].append(self.path)
        if self.path.startswith("/api/models/") or self.path.startswith("/api/whoami"):
            return self._answer({"id": "me/tiny", "name": "me", "sha": "0" * 40, "siblings": [], "private": False})
        return self._answer({"error": "not found"}, 404)

    def do_PUT(self):
        self.server.store["objects"][self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self):
        store, body = self.server.store, self._body()
        store["asked"].append(self.path)
        address = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            store["created"] = json.loads(body)
            return self._answer({"url": f"{address}/me/tiny", "name": "me/tiny"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            named = [one["path"] for one in json.loads(body)["files"]]
            mode = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in named}
            files = [{"path": name, "uploadMode": mode[name], "shouldIgnore": False} for name in named]
            return self._answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{address}/objects/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if "/commit/main" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    store["files"][value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    store["files"][value["path"]] = store["objects"][value["oid"]]
            return self._answer({"commitUrl": f"{address}/me/tiny/commit/1", "commitOid": "1" * 40, "success": True})
        return self._answer({"error": f"no {self.path}"}, 404)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the hub on this machine; huggingface_hub is pointed to it."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.store = {"files": {}, "objects": {}, "asked": [], "created": {}}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    from huggingface_hub import HfApi

    monkeypatch.setattr("huggingface_hub.HfApi", lambda token=None: HfApi(endpoint=address, token="hf_stand_in"))
    yield server.store
    server.shutdown()


def test_an_exported_folder_is_pushed_with_its_card_and_opens_again(hub, tmp_path):
    model = build_tiny(["where is the liver?", "<p> liver </p> [SEG]."])
    model.save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("# mine\n\nmeasured: 0.5\n")
    write_sources(tmp_path / "mine", [Source("training data", "ours", "CC BY-NC 4.0")])
    loaded = unimed.load(tmp_path / "mine", device="cpu")
    assert loaded.push_to_hub("me/tiny", private=True).endswith("/commit/1")
    created = hub["created"]
    assert created["name"] == "tiny" and (created.get("private") is True or created.get("visibility") == "private")
    assert hub["files"]["README.md"].decode() == "# mine\n\nmeasured: 0.5\n"
    assert b"CC BY-NC 4.0" in hub["files"]["sources.json"]
    for name, content in hub["files"].items():
        assert not name.startswith("/") and str(tmp_path).encode() not in content, name
        (tmp_path / "again" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "again" / name).write_bytes(content)
    again = unimed.load(tmp_path / "again", device="cpu")
    texts = [one.predict(IMAGE, "where is the liver?", max_new_tokens=4).text for one in (loaded, again)]
    assert texts[0] == texts[1]


def test_changed_weights_do_not_keep_the_card_that_measured_others(hub, tmp_path):
    import torch

    model = build_tiny(["where is the liver?", "<p> liver </p> [SEG]."])
    model.save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("# mine\n\nmeasured: 0.5\n")
    loaded = unimed.load(tmp_path / "mine", device="cpu")
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    loaded.push_to_hub("me/tiny")
    card = hub["files"]["README.md"].decode()
    assert "measured: 0.5" not in card and "Nothing was measured" in card and "Research use only" in card
