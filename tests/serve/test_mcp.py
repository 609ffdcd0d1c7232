"""The tools of an agent, called by the mcp client over standard input and output of the real command."""

import asyncio
import json
import os
import socket
import sys

import numpy as np
import pytest
from small_models import tiny_model

pytest.importorskip("mcp")
pytest.importorskip("pydantic")

from mcp import StdioServerParameters  # noqa: E402
from mcp.client.client import Client  # noqa: E402
from serve.serving import png  # noqa: E402

from unimed.geometry import Geometry  # noqa: E402
from unimed.io.write import write_nifti  # noqa: E402

GRID = Geometry(np.diag([-1.0, -1, 3, 1]))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcp")
    tiny_model().save_pretrained(folder / "model")
    root = folder / "root"
    (root / "study").mkdir(parents=True)
    (root / "study" / "a.png").write_bytes(png())
    (folder / "secret.png").write_bytes(png())
    (root / "link.png").symlink_to(folder / "secret.png")
    values = np.random.default_rng(0).integers(0, 99, (24, 24, 6)).astype(np.int16)
    for name, size in (("one", 4), ("two", 8)):
        labels = np.zeros(values.shape, np.uint8)
        labels[4 : 4 + size, 4 : 4 + size, 2:4] = 1
        write_nifti(root / f"{name}.nii.gz", values, GRID, labels=False)
        write_nifti(root / f"{name}-labels.nii.gz", labels, GRID)
    return folder


def test_an_agent_lists_segments_measures_compares_and_stays_inside(place):
    async def talk():
        command = ["-m", "unimed", "mcp", str(place / "model"), "--root", str(place / "root"), "--max-new-tokens", "4"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        async with Client(StdioServerParameters(command=sys.executable, args=command, env=environment)) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert names == {"list_tasks", "list_files", "describe", "segment", "measure", "compare", "report"}

            async def call(name, **arguments):
                progress = []

                async def told(done, total, message):
                    progress.append(done)

                done = await client.call_tool(name, arguments, progress_callback=told)
                return done, json.loads(done.content[0].text) if not done.is_error else done.content[0].text, progress

            _, tasks, _ = await call("list_tasks")
            assert tasks["kind"] == "answers" and tasks["notice"] == "research use only"
            _, files, _ = await call("list_files")
            assert "study/a.png" in files["files"] and "link.png" not in files["files"]
            _, said, progress = await call("describe", path="study/a.png")
            assert said["source"] == "a.png" and isinstance(said["answers"][0]["text"], str)
            assert progress[0] == 0 and progress[-1] == 1 and progress == sorted(progress)
            _, found, _ = await call("segment", path="one.nii.gz", targets=["nuclei"], modality="MR")
            assert all((place / "root" / name).is_file() for name in found["answers"][0]["files"])
            _, report, _ = await call("report", path="study/a.png")
            assert any(name.endswith(".html") for name in report["answers"][0]["files"])
            _, sizes, _ = await call("measure", labels="two-labels.nii.gz", image="two.nii.gz")
            assert sizes["measurements"][0]["voxels"] == 128
            assert round(sizes["measurements"][0]["volume_ml"], 6) == 0.384
            paths = dict(baseline="one.nii.gz", follow_up="two.nii.gz", baseline_labels="one-labels.nii.gz")
            _, changes, _ = await call("compare", **paths, follow_up_labels="two-labels.nii.gz", register=False)
            assert changes["changes"][0]["kind"] == "matched" and changes["recist"]["category"]
            for path in ("../secret.png", "/etc/passwd", "link.png", "nothing.png", "a\0b"):
                done, said, _ = await call("describe", path=path)
                assert done.is_error and str(place) not in said
                assert "path" in said or "read" in said or "nothing" in said, (
                    said
                )  # the reason, not only that it failed
            done, said, _ = await call("segment", path="one.nii.gz", targets=["nuclei"], formats=["os.system"])
            assert done.is_error and "unknown format" in said
            done, said, _ = await call("measure", labels="one.nii.gz")
            assert done.is_error or "measurements" in said

    asyncio.run(asyncio.wait_for(talk(), 120))


def test_over_http_it_serves_this_machine_alone(place):
    import http.client
    import threading
    import time

    from unimed.serve.mcp import build_server, over_http

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = over_http(build_server(tiny_model, place / "root", max_new_tokens=4), port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)

    async def talk():
        async with Client(f"http://127.0.0.1:{port}/mcp") as client:
            done = await client.call_tool("describe", {"path": "study/a.png"})
            assert not done.is_error and isinstance(json.loads(done.content[0].text)["answers"][0]["text"], str)
            outside = await client.call_tool("describe", {"path": "../secret.png"})
            assert outside.is_error and str(place) not in outside.content[0].text

    try:
        asyncio.run(asyncio.wait_for(talk(), 120))
        for host, origin in (("evil.example", ""), (f"127.0.0.1:{port}", "http://evil.example")):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            headers = {
                "Host": host,
                "Content-Type": "application/json",
                "Accept": "application/json, text/event-stream",
            }
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
            connection.request("POST", "/mcp", body, headers | ({"Origin": origin} if origin else {}))
            assert connection.getresponse().status in (403, 421)
            connection.close()
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
