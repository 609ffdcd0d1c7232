"""MONAI Label's own client (the class in its wheel) against a live server of ours."""

import io
import json
import time
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest
from PIL import Image
from small_models import tiny_model

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
nrrd = pytest.importorskip("nrrd")
slicerio = pytest.importorskip("slicerio")

from serve.monai_client import PlainClient, wheel_module  # noqa: E402
from serve.serving import TOKENS, application, bearer, png, served, speaking  # noqa: E402

import unimed  # noqa: E402
from unimed.inference.asking import ask, open_source  # noqa: E402
from unimed.serve.monai_label.answers import viewer_order  # noqa: E402
from unimed.serve.monai_label.door import monai_label_door  # noqa: E402


def client_class():
    module = wheel_module()
    return PlainClient if module is None else module.MONAILabelClient


def saved_volume(path, shape=(20, 24, 5), oblique=True):
    rng = np.random.default_rng(0)
    affine = np.diag([-1.5, -1.25, 3.0, 1.0])
    if oblique:
        c, s = np.cos(0.3), np.sin(0.3)
        affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    affine[:3, 3] = (10, -20, 30)
    nibabel.save(nibabel.Nifti1Image(rng.normal(40, 60, shape).astype(np.int16), affine), path)
    return affine


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def live(tmp_path_factory, saved):
    folder = tmp_path_factory.mktemp("monai")
    root = folder / "root"
    root.mkdir()
    (root / "shared.png").write_bytes(png(9))
    (root / "study").mkdir()
    saved_volume(root / "study" / "ct.nii.gz")
    model = speaking(unimed.load(str(saved), device="cpu"), "the <p> nuclei </p> [SEG] and <p> a lesion </p> [SEG].")
    app = application(folder, model, doors=[monai_label_door], root=root, max_new_tokens=40)
    with served(app) as server:
        server.folder = folder
        yield server


@pytest.fixture
def client(live, tmp_path):
    found = client_class()(live.url, tmpdir=str(tmp_path), client_id="test")
    found.update_auth({"token_type": "Bearer", "access_token": TOKENS["anna"]})
    return found


def test_login_gives_the_token_that_the_owner_knows(live):
    stranger = client_class()(live.url)
    assert stranger.auth_enabled() and not stranger.auth_valid_token()
    with pytest.raises(Exception, match="401"):
        stranger.info()
    with pytest.raises(Exception, match="401"):
        stranger.auth_token("anna", TOKENS["ben"])
    stranger.update_auth(stranger.auth_token("anna", TOKENS["anna"]))
    assert stranger.auth_valid_token() and stranger.info()["name"] == "unimed"


def test_info_has_what_slicer_and_ohif_ask_for(client):
    info = client.info()
    assert "config" not in info and isinstance(info["labels"], list) and set(info["labels"]) >= {"target 1"}
    model = info["models"]["tiny"]
    assert model["config"]["prompt"] == "" and model["config"]["overlaps"] is False
    assert isinstance(model["config"]["site"], list) and model["type"] == "segmentation"
    assert list(model["labels"].values()) == list(range(1, len(model["labels"]) + 1))
    assert info["datastore"]["total"] >= 2 and "uncertainty" in info["strategies"] and "tiny" in info["trainers"]


@pytest.mark.parametrize("overlaps", [False, True])
def test_free_text_becomes_a_label_map_in_the_grid_of_an_oblique_volume(client, live, overlaps):
    model = live.core.pool.get("tiny")
    path = live.folder / "root" / "study" / "ct.nii.gz"
    file, said = client.infer("tiny", "ct", {"prompt": "nuclei", "result_extension": ".nrrd", "overlaps": overlaps})
    how = {"site": "", "modality": "", "window": None}
    (alone,) = ask(model, open_source(path), ["Segment the nuclei."], how=how, max_new_tokens=40)
    masks = [region.mask & (region.presence is None or region.presence >= 0.5) for region in alone.regions]
    affine = np.diag([-1, -1, 1, 1]) @ nibabel.load(path).affine
    assert said["label_names"]["target 1"] == 1 and said["latencies"]["total"] >= 0
    numbers = [said["label_names"]["target 1"], said["label_names"]["target 2"]]
    assert said["phrases"] == {str(n): p for n, p in zip(numbers, ["nuclei", "a lesion"], strict=True)}
    assert masks[0].any() and masks[1].any() and said["text"].startswith("the nuclei and a lesion")
    if overlaps:
        assert file.endswith(".seg.nrrd")
        held = slicerio.read_segmentation(file)
        found = [slicerio.extract_segments(held, [([s["name"], 1])])["voxels"] > 0 for s in held["segments"]]
        assert [s["name"] for s in held["segments"]] == ["nuclei", "a lesion"]
        assert np.allclose(held["ijkToLPS"][:3, :3], affine[:3, :3], atol=1e-5)
        assert all((one == mask).all() for one, mask in zip(found, masks, strict=True))
    else:
        array, header = nrrd.read(file)
        assert header["space"] == "left-posterior-superior"
        assert np.allclose(header["space directions"].T, affine[:3, :3], atol=1e-5)
        assert ((array == numbers[1]) == masks[1]).all()  # the later one lies on top
        assert ((array == numbers[0]) == (masks[0] & ~masks[1])).all()


def test_nothing_found_is_a_file_of_zeros_because_the_client_needs_one(client):
    file, said = client.infer("tiny", "shared", {})
    array, _ = nrrd.read(file)
    assert array.max() == 0 and "prompt" in said["text"]
    with pytest.raises(Exception, match="404"):
        client.infer("tiny", "nothing-of-the-kind", {"prompt": "x"})
    with pytest.raises(Exception, match="404"):
        client.infer("other", "shared", {"prompt": "x"})


def test_session_upload_label_and_next_sample(client, tmp_path):
    path = tmp_path / "mine.nii.gz"
    saved_volume(path, (16, 12, 4))
    session = client.create_session(str(path))
    file, _ = client.infer("tiny", "", {"prompt": "lesion"}, session_id=session["session_id"])
    assert nrrd.read(file)[0].shape == (16, 12, 4)
    assert client.get_session(session["session_id"])["session_info"]["name"] == "mine.nii.gz"
    client.remove_session(session["session_id"])
    with pytest.raises(Exception, match="404"):
        client.get_session(session["session_id"])

    assert client.upload_image(str(path), "mine.nii.gz") == {"image": "mine"}
    sample = client.next_sample("first", {})
    assert sample["checksum"].startswith("SHA256:") and sample["path"] == ""
    file, said = client.infer("tiny", "mine", {"prompt": "lesion"})
    label = {"label_info": [{"name": "lesion", "idx": 1}]}
    assert client.save_label("mine", file, params=label) == {"image": "mine", "label": "mine"}
    back = client.download_label("mine", "final")
    assert Path(back).read_bytes() == Path(file).read_bytes()
    assert client.datastore()["objects"]["mine"]["labels"]["final"]["info"]["label_info"] == label["label_info"]
    assert "lesion" in client.info()["labels"]  # a submitted name is a label from now on
    left = {client.next_sample("random", {})["id"] for _ in range(20)}
    assert left == {"ct", "shared"}


def test_next_sample_by_uncertainty_is_the_one_the_model_was_least_sure_of(client, live):
    http = httpx.Client(base_url=live.url, headers=bearer("anna"))
    for name, doubt in (("ct", 0.2), ("shared", 0.9)):
        assert http.put("/datastore/image/info", params={"image": name},
                        data={"info": json.dumps({"uncertainty": doubt})}).status_code == 200  # fmt: skip
    assert client.next_sample("uncertainty", {})["id"] == "shared"
    http.put("/datastore/image/info", params={"image": "ct"}, data={"info": '{"uncertainty": 0.95}'})
    assert client.next_sample("uncertainty", {})["id"] == "ct"


def test_what_one_owner_has_no_other_sees(client, live):
    other = httpx.Client(base_url=live.url, headers=bearer("ben"))
    assert "mine" not in other.get("/datastore/", params={"output": "all"}).json()["objects"]
    for method, path in (("GET", "/datastore/image?image=mine"), ("GET", "/datastore/label?label=mine"),
                         ("DELETE", "/datastore/image?id=mine"), ("DELETE", "/datastore/label?id=mine"),
                         ("POST", "/infer/tiny?image=mine"), ("GET", "/train/"), ("GET", "/batch/infer")):  # fmt: skip
        assert other.request(method, path, data={"params": "{}"}).status_code == 404, path
    assert httpx.get(f"{live.url}/info/").status_code == 401


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "x" * 200, "a\x00b"])
def test_no_name_leads_out_of_the_folder(live, name):
    http = httpx.Client(base_url=live.url, headers=bearer("anna"))
    http.get("/info/")
    before = sorted(p for p in live.folder.rglob("*") if p.is_file())
    answer = http.put("/datastore/image", params={"image": name}, files={"file": ("x.png", png(1))})
    assert answer.status_code == 400, answer.text
    label = http.put("/datastore/label", params={"image": "shared", "tag": name}, files={"label": ("x.nrrd", b"x")})
    assert label.status_code == 400, label.text
    assert before == sorted(p for p in live.folder.rglob("*") if p.is_file())


def test_viewers_get_bare_voxels_in_their_order_and_send_them_back(live):
    http = httpx.Client(base_url=live.url, headers=bearer("anna"), timeout=60)
    body = {"params": json.dumps({"prompt": "nuclei", "result_compress": False})}
    answer = http.post("/infer/tiny", params={"image": "ct", "output": "image"}, data=body)
    header, _, voxels = answer.content.partition(b"\n\n")
    assert b"encoding: raw" in header and len(voxels) == 20 * 24 * 5
    sent = np.zeros((20, 24, 5), np.uint8)
    sent[3, 4, 0] = 1
    http.put("/datastore/label", params={"image": "ct", "tag": "ohif"},
             files={"label": ("label.bin", sent.tobytes(order="F"))})  # fmt: skip
    path = live.folder / "back.nrrd"
    path.write_bytes(http.get("/datastore/label", params={"label": "ct", "tag": "ohif"}).content)
    back, _ = nrrd.read(str(path))
    assert back[3, 4, 0] == 1 and back.sum() == 1
    assert (http.put("/datastore/label", params={"image": "ct", "tag": "ohif"},
                     files={"label": ("label.bin", b"123")}).status_code) == 400  # fmt: skip


def test_a_label_that_fits_no_image_replaces_no_other(live):
    http = httpx.Client(base_url=live.url, headers=bearer("anna"), timeout=60)
    where = {"image": "shared", "tag": "checked"}
    mask = np.zeros((40, 30), np.uint8)
    mask[5:20, 5:20] = 1
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    assert http.put("/datastore/label", params=where, files={"label": ("x.png", stream.getvalue())}).status_code == 200
    bad = (("x.png", b"no file of labels", "label.png"), ("x.png", png(3, (7, 9)), "shape"),
           ("x.nrrd", b"NRRD0004\n", "label.nrrd"), ("x.nii.gz", b"\x1f\x8b", "label"))  # fmt: skip
    for name, content, reason in bad:
        answer = http.put("/datastore/label", params=where, files={"label": (name, content)})
        assert answer.status_code == 400 and reason in answer.text and "/tmp" not in answer.text, answer.text
    kept = http.get("/datastore/label", params={"label": "shared", "tag": "checked"})
    assert kept.content == stream.getvalue()
    http.delete("/datastore/label", params={"id": "shared", "tag": "checked"})


def test_slices_of_a_viewer_ascend_along_rows_times_columns():
    from unimed.geometry import Geometry

    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    lps = np.diag([-1.0, -1, 1, 1])
    for k in (2.0, -2.0):
        geometry = Geometry(lps @ np.array([[1, 0, 0, 5], [0, 1, 0, 6], [0, 0, k, 7], [0, 0, 0, 1.0]]))
        turned, grid = viewer_order(array, geometry)
        axes = (lps @ grid.affine)[:3, :3]
        assert np.cross(axes[:, 0], axes[:, 1]) @ axes[:, 2] > 0
        place = np.argwhere(turned == array[1, 2, 3])[0]
        assert np.allclose(grid.affine @ [*place, 1], geometry.affine @ [1, 2, 3, 1])


def wait(http, path, seconds=60):
    end = time.monotonic() + seconds
    while (found := http.get(path).json())["status"] == "RUNNING" and time.monotonic() < end:
        time.sleep(0.1)
    return found


def test_batch_infer_labels_what_nobody_labelled(live, client, tmp_path):
    http = httpx.Client(base_url=live.url, headers=bearer("anna"), timeout=60)
    saved_volume(tmp_path / "known.nii.gz", (16, 12, 4))
    client.upload_image(str(tmp_path / "known.nii.gz"), "known.nii.gz")
    file, _ = client.infer("tiny", "known", {"prompt": "lesion"})
    client.save_label("known", file, params={"label_info": [{"name": "lesion", "idx": 1}]})
    assert http.post("/batch/infer/tiny", json={"prompt": "nuclei", "label_tag": "final"}).status_code == 400
    started = http.post("/batch/infer/tiny", params={"images": "unlabeled"}, json={"prompt": "nuclei"})
    assert started.status_code == 200
    done = wait(http, "/batch/infer")
    assert done["status"] == "DONE" and done["result"]["failed"] == 0, done
    objects = client.datastore()["objects"]
    assert "original" in objects["ct"]["labels"] and "original" in objects["shared"]["labels"]
    assert "original" not in objects["known"]["labels"]  # has one of a person
    assert "uncertainty" in objects["shared"]["image"]["info"]
    http.delete("/datastore/image", params={"id": "known"})


@pytest.mark.slow
def test_an_adapter_is_trained_from_submitted_labels_and_answers_for_its_owner_alone(live, client, tmp_path):
    http = httpx.Client(base_url=live.url, headers=bearer("anna"), timeout=60)
    assert not client.train_status(check_if_running=True)
    mask = np.zeros((40, 30), np.uint8)
    mask[5:20, 5:20] = 1
    Image.fromarray(mask).save(tmp_path / "label.png")
    client.save_label("shared", str(tmp_path / "label.png"), params={"label_info": [{"name": "nuclei", "idx": 1}]})
    http.delete("/datastore/label", params={"id": "mine"})
    with pytest.raises(Exception, match="400"):
        client.train_start("tiny", {"max_steps": -1})
    client.train_start("tiny", {"tiny": {"max_steps": 3, "lora_rank": 2}})
    assert client.train_status(check_if_running=True)
    with pytest.raises(Exception, match="429"):
        client.train_start("tiny", {"max_steps": 1})
    done = wait(http, "/train/", 240)
    assert done["status"] == "DONE" and done["result"]["done"] == 3, done
    assert "tiny-adapted" in client.info()["models"]
    file, _ = client.infer("tiny-adapted", "shared", {"prompt": "nuclei"})
    assert nrrd.read(file)[0].shape == (30, 40, 1)
    ben = httpx.Client(base_url=live.url, headers=bearer("ben"), timeout=60)
    assert "tiny-adapted" not in ben.get("/info/").json()["models"]
    assert ben.post("/infer/tiny-adapted?image=shared", data={"params": "{}"}).status_code == 404
    models = [m["id"] for m in http.get("/v1/models").json()["data"]]
    assert models == ["tiny"]
    client.train_start("tiny", {"max_steps": 5000})
    client.train_stop()
    assert wait(http, "/train/", 150)["result"]["state"] == "cancelled"
