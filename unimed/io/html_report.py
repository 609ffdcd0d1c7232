"""A result as one HTML file that opens anywhere, without a network: image, masks, sentences, values and provenance."""

from __future__ import annotations

import base64
import datetime
import gzip
import io
import json
import os
from functools import partial
from pathlib import Path

import numpy as np

from unimed.files import write_text
from unimed.geometry import Geometry
from unimed.io.dicom_rendered import rendered_slices
from unimed.io.dicom_source import DicomSegError, source_of_result
from unimed.io.findings import NOTICE, Finding, findings_of, model_name, presence_words, sentences
from unimed.io.views import gray_values, upright
from unimed.markup import for_html
from unimed.version import __version__

PAGES = Path(__file__).parent / "pages"
#: Variable with the path of niivue's `niivue.umd.js` (npm package @niivue/niivue), which adds a view with WebGL.
NIIVUE_VARIABLE = "UNIMED_NIIVUE"
#: Voxels that a report holds at most; larger volumes are shown at every second or third.
MOST_VOXELS = 12_000_000
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_POLICY_NIIVUE = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval' blob:; "
    "img-src data: blob:; worker-src blob:; connect-src data: blob:"
)


def as_html_report(
    prediction,
    image=None,
    formats=(),
    *,
    calibrated: bool = False,
    deidentified: bool = False,
    niivue: str | Path | None = None,
    most_voxels: int = MOST_VOXELS,
) -> dict:
    """`NAME.html`: one file for a mail; PDF by printing. It fetches nothing and holds nothing of the patient.

    Args:
        image: uint8 as it is seen, or values in the grid of the masks; by default the DICOM source is read again, and
            other results are shown without an image.
        calibrated: whether `presence` was calibrated; it is told.
        deidentified: without the name of the image file too.
        niivue: path of `niivue.umd.js`, by default `$UNIMED_NIIVUE`; a view with WebGL is added.
        most_voxels: more are thinned out.

    Raises:
        ValueError: an image that does not fit the masks. FileNotFoundError: no file `niivue`.
    """
    gray = gray_values(prediction, image)
    values, unit = _values(prediction, image)
    found = findings_of(prediction, values=values, unit=unit)
    data = _data(prediction, found, gray, most_voxels)
    script = niivue or os.environ.get(NIIVUE_VARIABLE) or ""
    library = Path(script).read_text(encoding="utf-8") if script and data["image"] and data["shape"][2] > 1 else ""
    if library:
        data["nifti"] = _nifti(prediction, found, gray, most_voxels)
    return {".html": partial(write_text, text=_page(prediction, found, data, image, calibrated, deidentified, library))}


def _values(prediction, image) -> tuple[np.ndarray | None, str]:
    """Values to measure: of the image where they are no picture, else of the DICOM source."""
    if image is not None and image.dtype != np.uint8:
        header = prediction.geometry.header if prediction.geometry is not None else {}
        return image, "[hnsf'U]" if header.get("modality") == "CT" else "1"
    try:
        source = source_of_result(prediction.geometry, "html")
    except DicomSegError:
        return None, "1"
    return source.values_in_grid(prediction), source.unit


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _data(prediction, found: list[Finding], gray: np.ndarray | None, most: int) -> dict:
    """What the script draws: grey values or RGB, and bits of each mask within its box; x runs fastest."""
    regions = [{"name": f.label, "color": list(f.color), "box": f.region.box_xyxy_px} for f in found]
    if gray is None:
        masks = [f.region.mask for f in found if f.region.mask is not None]
        if not masks:
            return {"image": None, "shape": [0, 0, 0], "regions": regions, "step": [1, 1, 1]}
        gray = np.zeros(masks[0].shape, np.uint8)
    color = gray.ndim == 3 and _is_color(gray, found, prediction)
    planes = [gray[..., c] for c in range(3)] if color else [gray]
    turned = [upright(plane, prediction.geometry) for plane in planes]
    volume = np.stack([array for array, _ in turned], -1)
    geometry: Geometry = turned[0][1]
    step = _steps(volume.shape[:3], most)
    volume = volume[:: step[0], :: step[1], :: step[2]]
    shape = volume.shape[:3]
    for entry, finding in zip(regions, found, strict=True):
        if finding.is_drawn:
            mask = _thinned(upright(finding.region.mask, prediction.geometry)[0], step)
            where = np.argwhere(mask)
            low, high = where.min(0), where.max(0) + 1
            part = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            bits = np.packbits(part.ravel(order="F"), bitorder="little").tobytes()
            middle = where.mean(0)
            nearest = where[np.abs(where - middle).sum(1).argmin()]
            entry |= {"low": low.tolist(), "size": (high - low).tolist(), "center": nearest.tolist(),
                      "bits": _base64(gzip.compress(bits, mtime=0))}  # fmt: skip
        elif finding.region.box_xyxy_px is not None and shape[2] == 1:
            x1, y1, x2, y2 = finding.region.box_xyxy_px
            entry["box"] = [x1 / step[0], y1 / step[1], x2 / step[0], y2 / step[1]]
    start = next((r["center"] for r in regions if "center" in r), [n // 2 for n in shape])
    return {
        "image": _base64(gzip.compress(np.ascontiguousarray(volume.transpose(2, 1, 0, 3)).tobytes(), mtime=0)),
        "shape": list(shape),
        "placed": geometry.is_physical,
        "channels": volume.shape[3],
        "spacing": [s * n for s, n in zip(geometry.spacing, step, strict=True)],
        "start": start,
        "step": list(step),
        "regions": regions,
    }


def _is_color(gray: np.ndarray, found, prediction) -> bool:
    masks = [f.region.mask for f in found if f.region.mask is not None]
    physical = prediction.geometry is not None and prediction.geometry.is_physical
    return gray.shape[2] == 3 and (masks[0].ndim == 2 if masks else not physical)


def _steps(shape, most: int) -> tuple[int, int, int]:
    step = [1, 1, 1]
    while np.prod([-(-n // s) for n, s in zip(shape, step, strict=True)]) > most:
        left = [-(-n // s) for n, s in zip(shape, step, strict=True)]
        step[int(np.argmax(left))] += 1
    return tuple(step)


def _thinned(mask: np.ndarray, step) -> np.ndarray:
    """Every so many voxels of a mask; a block that holds one voxel is kept, so that small things stay."""
    if step == (1, 1, 1):
        return mask
    padded = np.pad(mask, [(0, -n % s) for n, s in zip(mask.shape, step, strict=True)])
    blocks = padded.reshape([v for n, s in zip(padded.shape, step, strict=True) for v in (n // s, s)])
    return blocks.any((1, 3, 5))


def _nifti(prediction, found, gray: np.ndarray, most: int) -> dict:
    """Image and label map as NIfTI for niivue, thinned like the rest."""
    import nibabel

    volume, geometry = upright(gray, prediction.geometry)
    step = _steps(volume.shape, most)
    affine = geometry.affine @ np.diag((*step, 1))
    labels = np.zeros([-(-n // s) for n, s in zip(volume.shape, step, strict=True)], np.uint8)
    for number, finding in enumerate(found, 1):
        if finding.is_drawn and number < 256:
            labels[_thinned(upright(finding.region.mask, prediction.geometry)[0], step)] = number

    def packed(array: np.ndarray) -> str:
        return _base64(gzip.compress(nibabel.Nifti1Image(array, affine).to_bytes(), mtime=0))

    thin = np.ascontiguousarray(volume[:: step[0], :: step[1], :: step[2]])
    return {"image": packed(thin), "labels": packed(labels) if labels.any() else None}


# The page -------------------------------------------------------------------------------------------------------------


def _page(prediction, found, data: dict, image, calibrated: bool, deidentified: bool, library: str) -> str:
    style = (PAGES / "report.css").read_text(encoding="utf-8")
    script = (PAGES / "report.js").read_text(encoding="utf-8")
    # In a script element "</" would end it, whatever the text around it says.
    held = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    source = getattr(prediction, "image", None)
    name = Path(source.name).name if source is not None and source.name and not deidentified else ""
    thin = "x".join(map(str, data["step"]))
    controls = (
        '<div id="controls" class="screen"><label>opacity '
        '<input id="opacity" type="range" min="0" max="100" value="40"></label>'
        f"<span>{'click: go there; wheel: slices; slices are seen from the feet' if data['shape'][2] > 1 else ''}"
        f"{'' if thin == '1x1x1' else f'; thinned {thin} for this page'}</span></div>"
    )
    keys = "".join(
        f'<img alt="slice with outlines" src="data:image/png;base64,{_png(p)}">'
        for p in rendered_slices(prediction, image)
    )
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY_NIIVUE if library else _POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>unimed report{f': {for_html(name)}' if name else ''}</title><style>{style}</style></head><body>",
        f'<p class="notice">{NOTICE}: not reviewed by a physician, not for diagnosis or treatment</p>',
        f"<h1>Report{f' of {for_html(name)}' if name else ''}</h1>",
        f'<p class="answer">{_answer(prediction, found)}</p>',
        '<div id="views" class="screen"></div>' if data["image"] else "",
        controls if data["image"] else "",
        '<h2 class="screen">3D</h2><div id="volume" class="screen"><canvas id="gl"></canvas></div>' if library else "",
        "<h2>Findings</h2>" + _table(found, calibrated),
        f'<h2>Slices</h2><div class="keys">{keys}</div>' if keys else "",
        "<h2>How it was made</h2>" + _provenance(prediction, name),
        f'<script id="data" type="application/json">{held}</script>',
        f"<script>{library.replace('</script', '<' + chr(92) + '/script')}</script>" if library else "",
        f"<script>{script}</script></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _png(image: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return _base64(stream.getvalue())


def _answer(prediction, found: list[Finding]) -> str:
    """The text, each sentence that speaks of a region linked to it."""
    text, made, last = prediction.text or "", [], 0
    for start, end in sentences(text):
        sentence = text[start:end].strip()
        linked = next((n for n, finding in enumerate(found) if finding.sentence and finding.sentence == sentence), None)
        made.append(for_html(text[last:start]))
        mark = ""
        if linked is not None:
            color = "rgb({},{},{})".format(*found[linked].color)
            mark = f' data-region="{linked}" style="border-color:{color}"'
        made.append(f'<span class="s"{mark}>{for_html(text[start:end])}</span>')
        last = end
    return "".join(made) or "<em>The model wrote no text.</em>"


def _table(found: list[Finding], calibrated: bool) -> str:
    if not found:
        return "<p>Nothing was pointed at.</p>"
    head = ("", "phrase", "code", "presence", "volume ml", "long axis mm", "short axis mm", "values", "place")
    rows = []
    for number, finding in enumerate(found):
        size, region = finding.measurements, finding.region
        physical = finding.is_drawn and size.physical
        cells = [f"{v:.2f}" for v in (size.volume_ml, size.long_axis_mm, size.short_axis_mm)] if physical else [""] * 3
        mean = ""
        if finding.is_drawn and size.mean is not None:
            mean = f"{size.mean:.1f} &plusmn; {size.deviation:.1f}{' HU' if size.unit != '1' else ''}"
        swatch = "rgb({},{},{})".format(*finding.color)
        parts = (finding.coding.region_modifier or finding.coding.type_modifier, finding.coding.region)
        code = "; ".join(for_html(str(c)) for c in (finding.coding.type, *(p for p in parts if p is not None)))
        rows.append(
            f'<tr data-region="{number}"><td><input type="checkbox" checked data-show="{number}" aria-label="show"> '
            f'<span class="swatch" style="background:{swatch}"></span></td><td>{for_html(finding.label)}</td>'
            f"<td>{code}</td><td>{for_html(presence_words(region, finding.is_drawn, calibrated))}</td>"
            + "".join(f'<td class="n">{cell}</td>' for cell in (*cells, mean))
            + f"<td>{_place(region)}</td></tr>"
        )
    cells = "".join(f"<th>{for_html(h)}</th>" for h in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _place(region) -> str:
    """Confidence and spread of a place in words."""
    parts = [] if region.confidence is None else [f"confidence {region.confidence:.2f}"]
    if region.box_xyxy_px is not None:
        parts.append("box " + ", ".join(f"{v:.0f}" for v in region.box_xyxy_px))
    if region.box_std_px is not None:
        parts.append("&plusmn; " + ", ".join(f"{v:.1f}" for v in region.box_std_px) + " px")
    return "; ".join(parts)


def _provenance(prediction, name: str) -> str:
    source = getattr(prediction, "image", None)
    steps = list(source.steps) if source is not None else []
    steps += [
        step for step in (prediction.geometry.steps if prediction.geometry is not None else ()) if step not in steps
    ]
    rows = {
        "model": model_name(prediction),
        "program": f"unimed {__version__}",
        "image": name,
        "steps": "; ".join(steps),
        "seconds": ", ".join(f"{key} {value:.2f}" for key, value in dict(prediction.timing_s).items()),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "use": NOTICE,
    }
    listed = "".join(f"<dt>{key}</dt><dd>{for_html(value)}</dd>" for key, value in rows.items() if value)
    return f"<dl>{listed}</dl>"
