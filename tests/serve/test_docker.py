"""The Dockerfile without docker: every path, extra, bound, flag and command that it names is there."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def instructions():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    rows = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, rest in rows]


def of(name):
    return [rest for known, rest in instructions() if known == name]


def test_what_is_copied_is_there_and_not_ignored():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for rest in of("COPY") for source in shlex.split(rest)[:-1]]
    assert copied and set(copied) == set(kept)
    for source in copied:
        assert (ROOT / source).exists(), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied)


def test_bounds_and_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runs = " ".join(of("RUN"))
    for bound in re.findall(r'"((?:torch|torchvision)[<>=][^"]+)"', runs):
        assert bound in project["dependencies"], bound
    assert len(re.findall(r'"(?:torch|torchvision)[<>=]', runs)) == 2
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', runs)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (base,) = of("FROM")
    version = re.search(r"python:(\d+\.\d+)", base)[1]
    assert version in project["requires-python"]


def test_the_command_is_one_that_serve_understands(monkeypatch, tmp_path):
    from unimed.commands import serve as module

    seen = []
    monkeypatch.setattr(module, "guarded", lambda work, args: seen.append(args))
    (entry,), (command,) = (json.loads(rest) for rest in of("ENTRYPOINT")), (json.loads(rest) for rest in of("CMD"))
    assert entry == ["unimed", "serve"]
    module.serve(command)
    (args,) = seen
    assert args.port == int(of("EXPOSE")[0]) and args.host == "0.0.0.0" and args.tokens and args.models == ["/model"]
    (volume,) = of("VOLUME")
    assert str(args.state).startswith(volume)
    assert dict(part.split("=") for part in shlex.split(of("ENV")[0]))["HF_HUB_OFFLINE"] == "1"
    users = [rest for name, rest in instructions() if name == "USER"]
    assert users == ["unimed"]


def test_the_health_check_tells_a_server_from_none(tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    from serve.serving import application, served
    from small_models import tiny_model

    command = json.loads(of("HEALTHCHECK")[0].split("CMD ", 1)[1])
    assert command[0] == "python"
    with served(application(tmp_path, tiny_model())) as server:
        code = command[2].replace("127.0.0.1:8000", server.url.removeprefix("http://"))
        assert code != command[2] and subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode != 0
