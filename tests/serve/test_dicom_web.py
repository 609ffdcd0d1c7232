"""DICOMweb of ours asked by dicomweb-client, and our client against it."""

import io
import json

import httpx
import numpy as np
import pytest
from clinical import ct_series
from PIL import Image
from small_models import tiny_model
from small_volumes import SERIES, STUDY

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
api = pytest.importorskip("dicomweb_client.api")

import pydicom  # noqa: E402
from requests import HTTPError  # noqa: E402
from serve.serving import application, bearer, served, speaking  # noqa: E402

from unimed.commands.predict import predict  # noqa: E402
from unimed.io.dicom_web import TOKEN_VARIABLE, fetch, store  # noqa: E402
from unimed.io.read import ReadError, read  # noqa: E402
from unimed.serve.dicom_web.door import dicom_web_door  # noqa: E402
from unimed.serve.dicom_web.index import Index  # noqa: E402
from unimed.serve.monai_label.door import monai_label_door  # noqa: E402

OTHER = "1.2.826.0.1.99"


def doors(folder):
    def both(core):
        index = Index(core.settings.state / "dicom", core.settings.root)
        core.index = index
        return dicom_web_door(core, index)

    return [both, lambda core: monai_label_door(core, series=core.index.place_of_series)]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicomweb")
    root = folder / "root"
    ct_series(root / "ct")
    (root / "notes.txt").write_text("no DICOM")
    (root / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    outside = folder / "outside"
    ct_series(outside, SeriesInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3")
    (root / "link").symlink_to(outside)
    with served(
        application(
            folder,
            speaking(tiny_model(), "the <p> nuclei </p> [SEG]."),
            doors=doors(folder),
            root=root,
            max_new_tokens=40,
        )
    ) as server:
        server.folder, server.root = folder, root
        yield server


def client(live, owner="anna", prefix="/dicomweb"):
    return api.DICOMwebClient(f"{live.url}{prefix}", headers=bearer(owner))


def test_search_at_every_level_with_filters_fields_and_pages(live):
    web = client(live)
    (study,) = web.search_for_studies()
    assert study["0020000D"]["Value"] == [STUDY] and study["00201208"]["Value"] == [6]
    assert study["00080061"]["Value"] == ["CT"] and study["00081190"]["Value"][0].endswith(STUDY)
    assert web.search_for_studies(search_filters={"PatientName": "doe*"}) == [study]
    assert web.search_for_studies(search_filters={"00100020": "P-77", "StudyDate": "20240101-20251231"}) == [study]
    for missed in ({"PatientID": "P-7"}, {"StudyDate": "20250103-"}, {"ModalitiesInStudy": "MR"},
                   {"StudyInstanceUID": "1.2"}):  # fmt: skip
        assert web.search_for_studies(search_filters=missed) == [], missed
    (series,) = web.search_for_series(STUDY)
    assert series["0020000E"]["Value"] == [SERIES] and series["00201209"]["Value"] == [6]
    found = [
        web.search_for_instances(STUDY, SERIES, limit=2, offset=k, fields=["SliceThickness"]) for k in (0, 2, 4, 6)
    ]
    numbers = [one["00080018"]["Value"][0] for part in found for one in part]
    assert len(set(numbers)) == 6 and found[3] == []
    with pytest.raises(HTTPError, match="400"):
        web.search_for_studies(search_filters={"NoSuchThing": "1"})
    for prefix in ("/proxy/dicom/qido",):
        assert client(live, prefix=prefix).search_for_studies()[0]["0020000D"]["Value"] == [STUDY]


def test_metadata_files_and_frames_are_those_of_the_folder(live):
    web = client(live)
    held = {str(d.SOPInstanceUID): d for d in map(pydicom.dcmread, sorted((live.root / "ct").iterdir()))}
    rows = web.retrieve_series_metadata(STUDY, SERIES)
    assert len(rows) == 6 and all("7FE00010" not in row for row in rows)
    assert {row["00080018"]["Value"][0] for row in rows} == set(held)
    for one in web.retrieve_series(STUDY, SERIES):
        assert (one.pixel_array == held[one.SOPInstanceUID].pixel_array).all()
        assert one.PatientName == "Doe^Jane"
    sop, dataset = next(iter(held.items()))
    (frame,) = web.retrieve_instance_frames(STUDY, SERIES, sop, [1])
    pixels = np.frombuffer(frame, dataset.pixel_array.dtype).reshape(dataset.pixel_array.shape)
    assert (pixels == dataset.pixel_array).all()
    for frame in ("2", "0", "x", "1,9"):
        path = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{sop}/frames/{frame}"
        assert httpx.get(f"{live.url}{path}", headers=bearer("anna")).status_code in (400, 404)


def test_a_frame_that_is_named_many_times_is_kept_once(live):
    from unimed.serve.dicom_web.pixels import frames_of

    sop = client(live).search_for_instances(STUDY, SERIES)[0]["00080018"]["Value"][0]
    (one,) = live.core.index.chosen("anna", STUDY, SERIES, sop)
    made, _ = frames_of(one, [1] * 1000, "")
    assert len(made) == 1000 and len({id(content) for content in made}) == 1


def test_compressed_frames_are_sent_as_stored_or_decoded_as_the_caller_wants(live, tmp_path):
    from pydicom.uid import RLELossless, generate_uid

    dataset = pydicom.dcmread(sorted((live.root / "ct").iterdir())[0])
    plain = dataset.pixel_array.copy()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.compress(RLELossless)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    client(live).store_instances([dataset])
    path = f"/dicomweb/studies/{STUDY}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}/frames/1"
    stored = httpx.get(f"{live.url}{path}", headers=bearer("anna"))
    assert "image/dicom-rle" in stored.headers["content-type"]
    accept = {"Accept": 'multipart/related; type="application/octet-stream"'}
    sent = httpx.get(f"{live.url}{path}", headers=bearer("anna") | accept)
    assert plain.tobytes() in sent.content


def test_pictures_are_windowed_as_asked_and_scaled(live):
    web = client(live)
    sop = web.search_for_instances(STUDY, SERIES)[0]["00080018"]["Value"][0]
    url = f"{live.url}/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{sop}/rendered"
    accept = bearer("anna") | {"Accept": "image/png"}
    picture = Image.open(io.BytesIO(httpx.get(url, headers=accept).content))
    assert picture.format == "PNG" and picture.size == (9, 7)
    dark = np.asarray(Image.open(io.BytesIO(httpx.get(f"{url}?window=3000,10,linear", headers=accept).content)))
    light = np.asarray(Image.open(io.BytesIO(httpx.get(f"{url}?window=-3000,10,linear", headers=accept).content)))
    assert dark.max() == 0 and light.min() == 255
    big = Image.open(io.BytesIO(httpx.get(f"{url}?viewport=90,70", headers=bearer("anna")).content))
    assert big.format == "JPEG" and big.size == (90, 70)
    for wrong in ("window=1", "window=a,b", "window=1,0", "viewport=100000,1", "viewport=nan,2"):
        assert httpx.get(f"{url}?{wrong}", headers=accept).status_code == 400, wrong


def test_what_is_stored_is_the_owners_alone_and_nothing_is_replaced(live):
    from pydicom.uid import generate_uid

    dataset = pydicom.dcmread(sorted((live.root / "ct").iterdir())[0])
    dataset.StudyInstanceUID = OTHER
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    web = client(live)
    answer = web.store_instances([dataset])
    assert answer.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    assert web.retrieve_study(OTHER)[0].SOPInstanceUID == dataset.SOPInstanceUID
    assert client(live, "ben").search_for_studies(search_filters={"StudyInstanceUID": OTHER}) == []
    with pytest.raises(HTTPError, match="404"):
        client(live, "ben").retrieve_study(OTHER)
    dataset.PatientName = "Other^Name"
    with pytest.raises(HTTPError, match="409"):
        web.store_instances([dataset])
    assert web.retrieve_study(OTHER)[0].PatientName == "Doe^Jane"
    mine = pydicom.dcmread(sorted((live.root / "ct").iterdir())[1])  # the root is never written to
    mine.PatientName = "Other^Name"
    with pytest.raises(HTTPError, match="409"):
        web.store_instances([mine])
    with pytest.raises(HTTPError, match="409"):
        web.store_instances([dataset], study_instance_uid="1.2.3.4.5")
    assert httpx.get(f"{live.url}/dicomweb/studies").status_code == 401


def test_links_that_lead_out_and_damaged_files_are_not_there(live):
    studies = {row["0020000D"]["Value"][0] for row in client(live).search_for_studies()}
    assert "1.2.3" not in studies and studies <= {STUDY, OTHER}
    for body, kind, status in ((b"x", "application/json", 415), (b"x", "multipart/related; boundary=b", 400),
                               (b"--b\r\nx\r\n--b--", "multipart/related; boundary=b", 400),
                               (b"--b\r\n\r\njunk\r\n--b--", "multipart/related; boundary=b", 409)):  # fmt: skip
        sent = httpx.post(f"{live.url}/dicomweb/studies", content=body, headers=bearer("anna") | {"Content-Type": kind})
        assert sent.status_code == status, (body, sent.text)
    mean = pydicom.dcmread(sorted((live.root / "ct").iterdir())[0])
    for uid in ("../../x", "/etc/passwd", "a.b"):
        with pydicom.config.disable_value_validation():
            mean.SeriesInstanceUID = uid
            with pytest.raises(HTTPError, match="409"):
                client(live).store_instances([mean])


def test_viewers_ask_for_masks_by_the_uid_of_a_series(live):
    nrrd = pytest.importorskip("nrrd")
    answer = httpx.post(
        f"{live.url}/infer/tiny", params={"image": SERIES, "output": "image"}, headers=bearer("anna"), timeout=60,
        data={"params": json.dumps({"prompt": "nuclei"})},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    path = live.folder / "mask.nrrd"
    path.write_bytes(answer.content)
    array, header = nrrd.read(str(path))
    assert array.shape == (9, 7, 6) and header["encoding"] == "raw" and array.max() == 1
    axes = header["space directions"].T
    assert np.cross(axes[:, 0], axes[:, 1]) @ axes[:, 2] > 0
    expected = read(live.root / "ct")[1].spacing
    assert np.allclose(np.linalg.norm(axes, axis=0), expected)


def test_a_study_is_fetched_segmented_and_its_results_are_stored_there(live, tmp_path, monkeypatch, capsys):
    pytest.importorskip("highdicom")
    monkeypatch.setenv(TOKEN_VARIABLE, bearer("ben")["Authorization"].split()[1])
    (folder,) = fetch(f"{live.url}/dicomweb", STUDY, SERIES, tmp_path / "got")
    array, geometry = read(folder)
    held, known = read(live.root / "ct")
    assert (array == held).all() and np.allclose(geometry.affine, known.affine)
    model = speaking(tiny_model(), "the <p> nuclei </p> [SEG].")
    monkeypatch.setattr("unimed.commands.predict.load_model", lambda *a, **k: model)
    code = predict(["tiny", "Segment the nuclei.", "--dicomweb", f"{live.url}/dicomweb", "--study", STUDY,
                    "--out", str(tmp_path / "out"), "--stow", "--device", "cpu", "--max-new-tokens", "40"])  # fmt: skip
    said, wrong = capsys.readouterr()
    assert code == 0, wrong
    kinds = [row["00080060"]["Value"][0] for row in client(live, "ben").search_for_series(STUDY)]
    drawn = list((tmp_path / "out").glob("*.dcm"))
    assert {_modality(path) for path in drawn} == {"SEG", "SR"}
    assert f"{len(drawn)} objects stored" in said and sorted(kinds) == sorted(["CT", *(_modality(p) for p in drawn)])
    assert client(live).search_for_series(STUDY, search_filters={"Modality": "SEG"}) == []  # of ben


def _modality(path):
    return str(pydicom.dcmread(path, stop_before_pixels=True).Modality)


def test_wrong_servers_and_uids_are_one_line(live, tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "wrong")
    for url, study, said in ((f"{live.url}/dicomweb", STUDY, "401"), ("file:///etc", STUDY, "http or https"),
                             ("http://127.0.0.1:9", STUDY, "127.0.0.1:9"), (f"{live.url}/dicomweb", "../x", "no DICOM UID")):  # fmt: skip # noqa: E501
        with pytest.raises(ReadError, match=said):
            fetch(url, study, None, tmp_path / "none")
    assert not (tmp_path / "none").exists() and store(f"{live.url}/dicomweb", []) == 0
