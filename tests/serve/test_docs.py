"""The commands and programs of docs/serving.md, run as they stand there against a server of this process."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
from clinical import ct_series
from small_models import tiny_model

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from serve.serving import application, png, served, speaking  # noqa: E402

from unimed.serve.doors import clinic_doors  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def lines():
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip():
                yield line.strip()


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    root = folder / "root"
    ct_series(root / "study" / "ct")
    tiny_model().save_pretrained(folder / "tiny")
    model = speaking(tiny_model(), "the <p> liver </p> [SEG].")
    app = application(folder, model, doors=clinic_doors(), tokens=False, root=root, max_new_tokens=40)
    values = np.random.default_rng(0).normal(40, 60, (20, 16, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 3, 1])), folder / "ct.nii.gz")
    (folder / "case.png").write_bytes(png(1))
    with served(app) as server:
        server.folder = folder
        yield server


def test_every_command_line_of_ours_is_understood(monkeypatch):
    from unimed.commands import mcp, predict, serve

    seen = []
    for module in (mcp, predict, serve):
        monkeypatch.setattr(module, "guarded", lambda work, args: seen.append(args))
    verbs = {"serve": serve.serve, "predict": predict.predict, "mcp": mcp.mcp}
    found = [shlex.split(line.split(" #")[0].split("&&")[0]) for line in lines() if line.startswith("unimed ")]
    found += [shlex.split(line) for line in re.findall(r"`(unimed (?:serve|mcp|predict) [^`]+)`", PAGE)]
    for words in found:
        verbs[words[1]](words[2:])
    assert len(seen) == len(found) >= 8


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_every_request_of_the_page_is_answered(live):
    job, ran = "", 0
    for line in lines():
        if not line.startswith("curl"):
            continue
        address = live.url.removeprefix("http://")
        line = line.split("  #")[0].replace("localhost:8000", address).replace("/ID/", f"/{job}/")
        command = [*shlex.split(line), "--fail-with-body", "-s", "-S"]
        done = subprocess.run(command, cwd=live.folder, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if "/v1/jobs -H" in line:
            job = json.loads(done.stdout)["id"]
        ran += 1
    assert ran == 6 and (live.folder / "ct-0.seg.dcm").stat().st_size > 1000


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_program_of_the_page_runs(live, number, monkeypatch):
    program = blocks("python")[number]
    for module in re.findall(r"^(?:import|from) ([\w., ]+?)(?: import|$)", program, re.MULTILINE):
        for name in module.split(","):
            pytest.importorskip(name.strip())
    monkeypatch.chdir(live.folder)
    program = program.replace("http://127.0.0.1:8000", live.url).replace('"MODEL"', '"tiny"')
    names = {}
    exec(compile(program, "serving.md", "exec"), names)  # noqa: S102
    if "message" in names:
        assert names["message"].content.startswith("the liver") and names["message"].regions[0]["phrase"] == "liver"
    if "from_server" in names:
        assert names["from_server"].text.startswith("the liver") and names["from_server"].regions[0].phrase == "liver"
        assert names["from_you"].text.startswith("It is") and len(names["from_you"].regions) == 1
    if "my_door" in names:
        app = application(live.folder / "door", speaking(tiny_model(), "yes"), doors=[names["my_door"]], tokens=False)
        from fastapi.testclient import TestClient

        with TestClient(app) as client:
            id_ = client.post("/v1/images", files=[("file", ("x.png", png(1)))]).json()["id"]
            answer = client.get("/mine/ask", params={"image": id_, "text": "what"})
            assert answer.status_code == 200 and "yes" in answer.json()["text"], answer.text
