"""Contestants of every kind: models of ours and of transformers, endpoints, files, label folders; what is refused."""

import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from evaluation.harness import drawn, layouts, tiny_vlm
from serve.serving import application, served
from small_models import tiny_model

from unimed.data.readers.records import RecordDataset
from unimed.data.readers.volume_sets import DecathlonDataset, TotalSegmentatorDataset
from unimed.evaluation.contestants.base import ContestantError, Settings, asked, contestant
from unimed.evaluation.evaluating import evaluate
from unimed.evaluation.harness.frame import DRAWN
from unimed.evaluation.harness.plan import Plan, execute
from unimed.evaluation.scorers.choices import chosen, score_choices
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.io.write import write_nifti
from unimed.registry import CONTESTANTS, registered
from unimed.structures import Region, Sample

PLAN = {"resamples": 5, "worst": 0, "baselines": False, "leak_check": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return drawn.write(tmp_path_factory.mktemp("drawn"), patients=1, test_patients=2)


@pytest.fixture(scope="module")
def samples(data):
    dataset = RecordDataset(data, split="test")
    return [dataset[i] for i in range(len(dataset))]


def test_every_kind_is_here():
    assert set(registered(CONTESTANTS)) >= {"model", "transformers", "openai", "predictions", "labels", "no",
                                            "everything", "prior"}  # fmt: skip


def test_a_model_of_ours_answers_as_it_predicts(data, samples, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "mine")
    plan = Plan("unimed/any", str(tmp_path / "mine"), Settings(max_new_tokens=8), data=str(data), **PLAN)
    manifest, _ = execute(plan, tmp_path / "run")
    assert manifest["failed"] == 0 and manifest["contestant"]["identity"]["class"] == "GroundedMLLM"
    lines = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    for sample in (samples[0], samples[3]):
        said = model.predict(sample.images[0], model.processor.write(sample).conversation[0][1], max_new_tokens=8)
        assert next(line["text"] for line in lines if line["case"] == sample.sample_id) == said.text


def test_a_model_of_transformers_is_asked_and_its_boxes_are_read_by_dialect(data, tmp_path, monkeypatch):
    folder = tiny_vlm.publish(tmp_path / "qwen")
    settings = Settings(max_new_tokens=4, device="cpu")
    one = contestant(f"transformers:{folder}", settings)
    assert one.dialect.name == "qwen2_5_vl" and one.identity()["type"] == "qwen2_5_vl"
    assert one.read_size((100, 200)) == (112, 196)  # whole patches of 28 pixels, in which its boxes are
    manifest, _ = execute(
        Plan("unimed/any", f"transformers:{folder}", settings, data=str(data), **PLAN), tmp_path / "run"
    )
    assert manifest["failed"] == 0 and manifest["contestant"]["frame"]["verdict"] == "no boxes"
    # Boxes in pixels of the image as it was resized come back in pixels of the image.
    text = '[{"bbox_2d": [98, 28, 196, 56], "label": "lesion"}]'
    monkeypatch.setattr(one.model, "say", lambda images, question, limit: text)
    sample = Sample((np.zeros((100, 200), np.uint8),), Geometry.pixels(), "s", labels={"task": "box"},
                    conversation=(("user", "Where?"), ("assistant", "")))  # fmt: skip
    (region,) = one.answer_case(sample).regions
    assert region.box_xyxy_px == pytest.approx((100, 25, 200, 50)) and region.phrase == "lesion"


@contextmanager
def stub(answer):
    """A chat endpoint whose answers `answer(messages)` gives; what was asked is kept."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((dict(self.headers), body))
            message = {"role": "assistant", **answer(body["messages"])}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
            content = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def finder(messages):
    """Looks at the image it was sent and writes where the bright part lies, in thousandths."""
    import base64
    import io

    from PIL import Image

    url = messages[0]["content"][1]["image_url"]["url"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("L"))
    rows, columns = np.nonzero(image > image.max() * 0.75)
    height, width = image.shape
    box = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
    return {"content": json.dumps([{"bbox_2d": [round(v * 1000) for v in map(float, box)], "label": "lesion"}])}


def test_an_endpoint_is_asked_and_its_key_is_written_nowhere(data, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("MY_KEY", "sk-secret-0123456789")
    with stub(finder) as (url, seen):
        settings = Settings(url=url, key_variable="MY_KEY", max_new_tokens=16)
        manifest, _ = execute(Plan("unimed/any", "openai:gpt", settings, data=str(data), **PLAN), tmp_path / "run")
    assert manifest["failed"] == 0 and manifest["contestant"]["frame"]["verdict"] == "right"
    assert manifest["numbers"]["box/box/miou"] > 0.7  # it does find the disc
    headers, body = seen[-1]
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == "Bearer sk-secret-0123456789" and body[
        "temperature"
    ] == 0
    assert len(seen) == len(DRAWN) + 10
    assert all(
        "sk-secret" not in path.read_text(errors="replace") for path in (tmp_path / "run").iterdir() if path.is_file()
    )
    with pytest.raises(ContestantError, match="without user and password"):
        contestant("openai:gpt", Settings(url="http://me:pass@host/v1"))
    with pytest.raises(ContestantError, match="needs a model and an address"):
        contestant("openai:gpt")


def test_an_endpoint_in_a_wrong_frame_is_refused(data, tmp_path):
    pytest.importorskip("openai")

    def hundredths(messages):
        (found,) = json.loads(finder(messages)["content"])
        return {"content": json.dumps([{"bbox_2d": [v // 10 for v in found["bbox_2d"]], "label": "x"}])}

    with stub(hundredths) as (url, _), pytest.raises(ValueError, match="x1 y1 x2 y2 in 0 to 100;"):
        execute(Plan("unimed/any", "openai:gpt", Settings(url=url), data=str(data), **PLAN), tmp_path / "run")


def test_our_own_server_gives_what_the_model_gives(samples, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    model = tiny_model()
    with served(application(tmp_path, model, tokens=False)) as server:
        settings = Settings(url=f"{server.url}/v1", dialect="grounded", max_new_tokens=8)
        remote = contestant("openai:tiny", settings)
        for sample in (samples[0], samples[1]):
            there = remote.answer_case(asked(sample))
            here = model.predict(sample.images[0], model.processor.write(asked(sample)).conversation[0][1],
                                 max_new_tokens=8)  # fmt: skip
            assert there.text == here.text and len(there.regions) == len(here.regions)
            for one, two in zip(there.regions, here.regions, strict=True):
                assert (one.mask is None) == (two.mask is None)
                assert one.mask is None or (one.mask == two.mask).all()


def test_label_maps_of_nnunet_are_matched_by_name(tmp_path):
    layouts.decathlon(tmp_path / "data")
    dataset = DecathlonDataset(tmp_path / "data", "test")
    folder = tmp_path / "nnunet"
    folder.mkdir()
    for sample in (dataset[i] for i in range(len(dataset))):
        truth = tmp_path / f"data/labelsTr/{sample.sample_id}.nii.gz"
        (folder / truth.name).write_bytes(truth.read_bytes())
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "Liver": 1, "cancer": 2}}))
    manifest, _ = execute(
        Plan("masks/msd_liver", f"labels:{folder}", data=str(tmp_path / "data"), **PLAN), tmp_path / "run"
    )
    assert manifest["headline"]["mean"]["value"] == 1 and manifest["failed"] == 0
    (folder / f"{dataset[0].sample_id}.nii.gz").unlink()
    with pytest.raises(ContestantError, match="no label map of case"):
        contestant(f"labels:{folder}").answer([asked(dataset[0])])
    (folder / "dataset.json").unlink()
    with pytest.raises(ContestantError, match="dataset.json beside them"):
        contestant(f"labels:{folder}")


def test_folders_of_totalsegmentator_are_matched_by_name(tmp_path):
    layouts.totalsegmentator(tmp_path / "data")
    dataset = TotalSegmentatorDataset(tmp_path / "data", "test", ["liver", "heart"])
    one = contestant(f"labels:{tmp_path / 'data'}")
    samples = [dataset[i] for i in range(len(dataset))]
    for sample in samples:
        (answer,) = one.answer([asked(sample)])
        assert [row["dice"] for row in evaluate(answer, sample) if row["kind"] == "mask"] == [1, 1]
    path = tmp_path / "data/s0001/segmentations/liver.nii.gz"
    write_nifti(path, np.ones((3, 3, 3), np.uint8), Geometry(np.eye(4)))
    with pytest.raises(ContestantError, match="liver.nii.gz"):
        one.answer([replace(asked(samples[0]), regions=(Region("liver"),))])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("B", 1), ("(b)", None), ("(B)", 1), ("B. Lung", 1), ("Answer: C", 2), ("The answer is **A**.", 0), ("lung", 1),
        ("It shows the lung.", 1), ("I think of A first.\nNo.\nAnswer: B", 1), ("liver or lung", None), ("", None),
        ("left kidney", 3), ("The left kidney is shown.", 3), ("E", None), ("A lung is seen here", 1), ("kidney", 2),
    ],
)  # fmt: skip
def test_the_choice_that_an_answer_names(text, expected):
    assert chosen(text, ["Liver", "Lung", "Kidney", "Left kidney"]) == expected


def test_an_unreadable_answer_is_wrong_and_counted():
    labels = {"task": "vqa", "choices": ["Liver", "Lung"]}
    samples = [Sample((), Geometry.pixels(), f"s{n}", labels=labels,
                      conversation=(("user", "Which?"), ("assistant", "Lung"))) for n in range(4)]  # fmt: skip
    found = score_choices(samples, [Prediction(text) for text in ("B", "lung", "A", "who knows")])
    assert found["summary"] == {"accuracy": 0.5, "unreadable": 0.25, "chance": 0.5}
    assert [row["predicted"] for row in found["cases"]] == ["B", "lung", "A", "who knows"]
