"""The page: what is uploaded is deleted when it was read."""

import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from unimed.serve.zero_shot import Uploads, build_page, parse_lines


class Teller:
    """Stands for a model: says how many bytes an image file has."""

    def zero_shot(self, image, labels, templates, site=""):
        if not Path(image).read_bytes().startswith(b"image"):
            raise ValueError(f"{image}: no image")
        return SimpleNamespace(labels=labels, probabilities=[1 / len(labels)] * len(labels))


def upload(uploads, content=b"image 1", name="scan.dcm"):
    folder = uploads.folder / "0123abc"
    folder.mkdir()
    (folder / name).write_bytes(content)
    return folder / name


def files(uploads):
    return list(uploads.folder.rglob("*"))


def test_uploads_are_private_and_gone_when_read():
    uploads = Uploads()
    assert stat.S_IMODE(uploads.folder.stat().st_mode) == 0o700
    kept = uploads.take(str(upload(uploads)), None)
    assert kept == ("scan.dcm", b"image 1") and files(uploads) == []
    with uploads.file(kept) as path:
        assert Path(path).name == "scan.dcm" and Path(path).read_bytes() == b"image 1"
    assert files(uploads) == []
    assert uploads.take(None, kept) == kept and uploads.take(None, None) is None


def test_an_upload_that_cannot_be_read_is_gone_too():
    uploads = Uploads()
    with pytest.raises(IsADirectoryError):
        folder = uploads.folder / "a"
        folder.mkdir()
        uploads.take(str(folder), None)
    with pytest.raises(RuntimeError), uploads.file(("../x\x1b.png", b"")) as path:
        assert Path(path).parent.parent == uploads.folder
        raise RuntimeError
    assert [path.name for path in files(uploads)] == ["a"]


def test_files_elsewhere_are_not_deleted(tmp_path):
    (tmp_path / "example.png").write_bytes(b"image")
    assert Uploads().take(str(tmp_path / "example.png"), None) == ("example.png", b"image")
    assert (tmp_path / "example.png").is_file()


def test_labels_end_at_line_feeds():
    assert parse_lines("a, b\n\n c\u2028d \r\n") == ["a, b", "c\u2028d"]


def test_the_page_keeps_nothing_and_prints_nothing(tmp_path, capfd):
    gradio = pytest.importorskip("gradio")
    client = pytest.importorskip("gradio_client")
    page = build_page({"teller": Teller})
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    folder = Path(page.GRADIO_CACHE)
    try:
        (tmp_path / "scan.png").write_bytes(b"image of a patient")
        visitor = client.Client(address, verbose=False)
        send = client.handle_file(str(tmp_path / "scan.png"))
        shown = visitor.predict("teller", send, "lung\nheart", "", "", api_name="/zero_shot")[0]
        assert shown["label"] in ("lung", "heart")
        assert not [path for path in folder.rglob("*") if path.is_file() and b"patient" in path.read_bytes()]
        visitor.predict("teller", None, "lung\nheart", "", "", api_name="/zero_shot")  # the same image again
        (tmp_path / "scan.png").write_bytes(b"broken: of a patient")
        with pytest.raises((ValueError, gradio.Error, client.exceptions.AppError)):
            visitor.predict("teller", send, "lung\nheart", "", "", api_name="/zero_shot")
        assert "Traceback" not in "".join(capfd.readouterr())
        assert not [path for path in folder.rglob("*") if path.is_file() and b"patient" in path.read_bytes()]
    finally:
        page.close()
