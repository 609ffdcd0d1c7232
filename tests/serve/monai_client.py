"""`MONAILabelClient` of the monailabel wheel where it is there, else the same requests written here."""

import importlib.util
import os
import re
from email.parser import BytesParser
from pathlib import Path

import httpx


def wheel_folder(inside):
    """The path of a file inside the monailabel package; None where it is not there.

    `pip install --no-deps monailabel`, or `UNIMED_TEST_MONAILABEL` names the folder of the unpacked wheel.
    """
    found = importlib.util.find_spec("monailabel")
    places = [Path(place) for place in (found.submodule_search_locations if found else ())]
    places += [Path(place) / "monailabel" for place in os.environ.get("UNIMED_TEST_MONAILABEL", "").split(":") if place]
    return next((place / inside for place in places if (place / inside).is_file()), None)


def wheel_module():
    """`monailabel.client.client` alone (the package around it wants half of the world); None where it is not there."""
    path = wheel_folder("client/client.py")
    if path is None or importlib.util.find_spec("cgi") is None:  # Python 3.13 has it no more
        return None
    spec = importlib.util.spec_from_file_location("monailabel_client", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PlainClient:
    """The methods of `MONAILabelClient` that the tests use."""

    def __init__(self, url, tmpdir=None, client_id=None):
        self.folder, self.http = Path(tmpdir or "."), httpx.Client(base_url=url, timeout=60)

    def update_auth(self, token):
        self.http.headers["Authorization"] = f"{token['token_type']} {token['access_token']}"

    def _asked(self, method, path, **more):
        answer = self.http.request(method, path, **more)
        if answer.status_code != 200:
            raise RuntimeError(f"Status: {answer.status_code}; {answer.text}")
        return answer

    def auth_enabled(self):
        return self._asked("GET", "/auth/").json()["enabled"]

    def auth_token(self, username, password):
        return self._asked("POST", "/auth/token", data={"username": username, "password": password}).json()

    def auth_valid_token(self):
        return self.http.get("/auth/token/valid").status_code == 200

    def info(self):
        return self._asked("GET", "/info/").json()

    def next_sample(self, strategy, params):
        return self._asked("POST", f"/activelearning/{strategy}", json=params).json()

    def create_session(self, image_in):
        return self._asked(
            "PUT", "/session/", files=[("files", (Path(image_in).name, Path(image_in).read_bytes()))]
        ).json()

    def get_session(self, id_):
        return self._asked("GET", f"/session/{id_}").json()

    def remove_session(self, id_):
        return self._asked("DELETE", f"/session/{id_}").json()

    def upload_image(self, image_in, image_id):
        files = {"file": (str(image_in), Path(image_in).read_bytes())}
        return self._asked("PUT", "/datastore/", params={"image": image_id}, files=files).json()

    def save_label(self, image_id, label_in, tag="", params=None):
        import json

        files = {"label": (str(label_in), Path(label_in).read_bytes())}
        query = {"image": image_id} | ({"tag": tag} if tag else {})
        return self._asked(
            "PUT", "/datastore/label", params=query, files=files, data={"params": json.dumps(params)}
        ).json()

    def download_label(self, label_id, tag):
        answer = self._asked("GET", "/datastore/label", params={"label": label_id, "tag": tag})
        path = self.folder / re.search('filename="(.+)"', answer.headers["content-disposition"])[1]
        path.write_bytes(answer.content)
        return str(path)

    def datastore(self):
        return self._asked("GET", "/datastore/", params={"output": "all"}).json()

    def infer(self, model, image_id, params, session_id=None):
        import json

        query = {"image": image_id} | ({"session_id": session_id} if session_id else {})
        answer = self._asked("POST", f"/infer/{model}", params=query, files={"params": (None, json.dumps(params))})
        head = b"Content-Type: " + answer.headers["content-type"].encode() + b"\r\n\r\n"
        parts = {part.get_param("name", header="content-disposition"): part
                 for part in BytesParser().parsebytes(head + answer.content).get_payload()}  # fmt: skip
        path = self.folder / parts["image"].get_filename()
        path.write_bytes(parts["image"].get_payload(decode=True))
        return str(path), json.loads(parts["params"].get_payload())

    def train_start(self, model, params):
        return self._asked("POST", f"/train/{model}", json=params).json()

    def train_stop(self):
        return self._asked("DELETE", "/train/").json()

    def train_status(self, check_if_running=False):
        answer = self.http.get("/train/", params={"check_if_running": "true"} if check_if_running else {})
        return answer.status_code == 200 if check_if_running else answer.json()
