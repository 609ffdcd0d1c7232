"""Files of the pages in every format, without a browser."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from small_models import tiny_model

gradio = pytest.importorskip("gradio")
pytest.importorskip("fastapi")

from serve.serving import application, png, speaking  # noqa: E402

from unimed.inference.asking import open_source  # noqa: E402
from unimed.registry import WRITERS, registered  # noqa: E402
from unimed.serve.pages import Visit, _given, _Pages  # noqa: E402
from unimed.serve.zero_shot import Uploads  # noqa: E402

#: Formats that an image without a DICOM source or a volume cannot have; each says so in one line.
OTHERS = {"dicom-seg", "dicom-sr", "rtstruct", "parametric-map", "secondary-capture", "unibiomed"}


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    model = speaking(tiny_model(), "the <p> nuclei </p> [SEG].")
    core = application(folder, model, tokens=False).state.core
    stored = core.images.put("local", [("case.png", png(1))])
    (folder / "case.png").write_bytes(png(1))
    prediction = model.predict(open_source(folder / "case.png").content, "Segment the nuclei.", max_new_tokens=40)
    return _Pages(core, Uploads()), Visit(stored.id, "case.png", prediction=prediction)


@pytest.mark.parametrize("form", sorted(registered(WRITERS)))
def test_every_format_is_a_file_or_one_line(answered, form):
    pages, visit = answered
    request = SimpleNamespace(username=None)
    try:
        written = pages.save(visit, [form], "tiny", "", request)
    except gradio.Error as error:
        assert form in OTHERS and "\n" not in str(error) and "/" not in str(error).replace("and/or", "")
        return
    folder = pages.uploads.folder.resolve()
    assert written and all(folder in Path(path).resolve().parents for path in written)


def test_a_visitor_names_no_file_of_the_server(tmp_path):
    from fastapi.testclient import TestClient
    from serve.serving import TOKENS

    from unimed.serve.pages import pages_door

    root = tmp_path / "elsewhere"
    root.mkdir()
    (root / "case.png").write_bytes(png(1))
    given = {"path": str(root / "case.png"), "meta": {"_type": "gradio.FileData"}}
    drawn = {"background": None, "layers": [given], "composite": given}
    with TestClient(application(tmp_path, doors=[pages_door])) as client:
        login = {"username": "anna", "password": TOKENS["anna"]}
        assert client.post("/pages/login", data=login).status_code == 200
        with (root / "case.png").open("rb") as stream:
            (sent,) = client.post("/pages/gradio_api/upload", files={"files": stream}).json()
        uploaded = given | {"path": sent}
        for name, data, works in [
            ("take", [[given], None, "tiny", ""], False),
            ("take", [[uploaded | {"path": f"{sent}/../../../elsewhere/case.png"}], None, "tiny", ""], False),
            ("zero_shot", ["tiny", given, "a\nb", "", ""], False),
            ("ask", [None, "tiny", "", "what is it?", "", drawn], False),
            ("take", [[uploaded], None, "tiny", ""], True),
        ]:
            event = client.post(f"/pages/gradio_api/call/{name}", json={"data": data}).json()["event_id"]
            told = client.get(f"/pages/gradio_api/call/{name}/{event}").text
            assert ("event: complete" in told and "case.png" in told) is works, told
            assert works or "event: error" in told, told
    assert (root / "case.png").is_file()


def test_regions_are_points_boxes_or_what_was_painted():
    import numpy as np

    (box,) = _given("1, 2, 11.5, 12", None, (30, 40))
    assert box["box_xyxy"] == [1, 2, 11.5, 12]
    (point,) = _given("5 7", None, (30, 40))
    assert point["box_xyxy"] == [4, 6, 7, 9] and "mask" in point
    layer = np.zeros((30, 40, 4), np.uint8)
    layer[3:5, 6:9, 3] = 255
    (painted,) = _given("1, 2, 3, 4", {"layers": [layer]}, (30, 40))
    assert painted["box_xyxy"] == [6, 3, 9, 5]
    assert _given("", {"layers": [layer * 0]}, (30, 40)) == []
    for wrong in ("a", "1", "1,2,3", "500, 2"):
        with pytest.raises(ValueError):
            _given(wrong, None, (30, 40))
