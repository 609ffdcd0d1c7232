"""The doors of `unimed serve`, beyond the usual ones: MONAI Label, DICOMweb, Label Studio, a viewer beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimed.serve.core import Core


def clinic_doors(labels: Sequence[str] = (), ohif: Path | None = None, label_studio: str = "") -> list:
    """MONAI Label and DICOMweb over one index, Label Studio, and the built OHIF of a folder at `/ohif/`.

    Args:
        labels: names that Slicer and OHIF know beforehand.
        label_studio: address of Label Studio, which images of its tasks are fetched from.
        ohif: the folder `monailabel/endpoints/static/ohif` of the monailabel wheel, or another build for `/ohif/`.
    """
    from unimed.serve.dicom_web.door import dicom_web_door
    from unimed.serve.dicom_web.index import Index
    from unimed.serve.label_studio import label_studio_door
    from unimed.serve.monai_label.door import monai_label_door

    def both(core: Core):
        from fastapi import APIRouter

        index = Index(core.settings.state / "dicom", core.settings.root)
        router = APIRouter()
        router.include_router(dicom_web_door(core, index))
        router.include_router(monai_label_door(core, tuple(labels), index.place_of_series))
        return router

    found = [both, lambda core: label_studio_door(core, label_studio)]
    return found if ohif is None else [*found, lambda core: ("/ohif", _viewer(ohif))]


def _viewer(folder: Path):
    """The files of a viewer; addresses of its own pages lead to its start page.

    Raises:
        FileNotFoundError: no viewer in the folder.
    """
    from starlette.exceptions import HTTPException
    from starlette.staticfiles import StaticFiles

    if not (folder / "index.html").is_file():
        raise FileNotFoundError(f"{folder}: no index.html; give the folder of a built OHIF")

    class Viewer(StaticFiles):
        async def get_response(self, path, scope):
            try:
                return await super().get_response(path, scope)
            except HTTPException as error:
                if error.status_code != 404 or "." in path.rsplit("/", 1)[-1]:
                    raise
                return await super().get_response("index.html", scope)

    return Viewer(directory=folder, html=True)
