"""The pages of the server: ask about an image or volume and see what the answer points at (gradio, extra `serve`)."""

from __future__ import annotations

import contextlib
import html
import json
import queue
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

try:
    import gradio
except ImportError as error:
    raise ImportError("the pages need gradio: pip install 'unimed[serve]'") from error

from unimed.chat import as_plain_text
from unimed.io.overlay import COLORS
from unimed.io.windows import CT_WINDOWS_HU
from unimed.markup import for_html, for_markdown, plain_line, plain_text
from unimed.serve.core import Core, plain_problem
from unimed.serve.problems import Problem
from unimed.serve.regions import box_of, named_regions, region_of, regions_to_json
from unimed.serve.settings import LOCAL, owner_of
from unimed.serve.work import Question
from unimed.serve.zero_shot import Uploads, gradio_for, labels_tab

PATH = "/pages"
NOTICE = "**Research use only, not a medical device.** Somebody has to look at the image."
_NUMBERS = re.compile(r"[,;\s]+")
#: A point that was clicked stands for a disc of this share of the shorter side.
_POINT = 0.02
_CSS = """
button:focus-visible, input:focus-visible, textarea:focus-visible, [tabindex]:focus-visible {
  outline: 3px solid #0072B2 !important; outline-offset: 2px; }
iframe.report { width: 100%; height: 46rem; border: 1px solid #888; background: #fff; }
"""


@dataclass
class Visit:
    """What one visitor has open: an upload, the turns so far, the newest prediction."""

    image: str = ""
    name: str = ""
    history: list[tuple[str, str]] = field(default_factory=list)
    regions: list[dict] = field(default_factory=list)
    prediction: Any = None
    first: int = 1
    model: str = ""
    site: str = ""


def pages_door(core: Core) -> Callable:
    """The pages at `/pages`, with the owners and tokens of the server as logins."""
    _, uploads = gradio_for(Uploads())
    blocks = _Pages(core, uploads).build()

    def mount(app) -> None:
        from fastapi.responses import RedirectResponse

        @app.get("/", include_in_schema=False)
        def start():
            return RedirectResponse(f"{PATH}/")

        tokens = core.settings.tokens
        login = (lambda user, token: owner_of(token, tokens) == user) if tokens else None
        gradio.mount_gradio_app(
            app, blocks, PATH, auth=login, auth_message="User: the owner. Password: the token.", css=_CSS,
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]), footer_links=[],
            max_file_size=core.settings.limits.file_bytes, show_error=False, ssr_mode=False, pwa=False,
            enable_monitoring=False,
        )  # fmt: skip
        # gradio asks only of launched pages whether a path that a visitor names is that of an upload.
        blocks.has_launched = True

    return mount


class _Pages:
    def __init__(self, core: Core, uploads: Uploads):
        self.core, self.uploads = core, uploads
        self.tickets: dict[str, Any] = {}

    def build(self):
        with gradio.Blocks(title="unimed", delete_cache=(60, 300), analytics_enabled=False) as page:
            gradio.Markdown(f"# unimed\n{NOTICE}")
            with gradio.Tab("Ask"):
                self._ask_tab()
            with gradio.Tab("Labels"):
                labels_tab(gradio, self.core.pool.names, self._call, self.uploads)
        return page

    def _call(self, name: str, work):
        return self.core.call(name, work).future.result(self.core.settings.request_timeout_s)

    def _ask_tab(self) -> None:
        names = self.core.pool.names
        visit = gradio.State(Visit(), time_to_live=3600)
        with gradio.Row():
            with gradio.Column(scale=2):
                files = gradio.File(
                    type="filepath", file_count="multiple", label="Image or volume (several files: one DICOM series)"
                )
                told = gradio.Markdown(elem_id="told")
                image = gradio.Image(
                    interactive=False, label="Click: region of the question", elem_id="image", buttons=[], format="png"
                )
                how = gradio.Radio(["point", "box"], value="point", label="A click sets a", elem_id="how")
                region = gradio.Textbox(
                    label="Region in pixels: x, y of a point or x1, y1, x2, y2 of a box (clicks fill it in)",
                    elem_id="region",
                )
                with gradio.Accordion("Paint a region", open=False):
                    editor = gradio.ImageEditor(
                        label="What is painted is the region", sources=[], transforms=[], layers=False, type="numpy",
                        brush=gradio.Brush(colors=["#E69F00"], color_mode="fixed"), format="png", elem_id="editor",
                    )  # fmt: skip
                with gradio.Row():
                    model = gradio.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
                    site = gradio.Dropdown(["", *sorted(CT_WINDOWS_HU)], value="", label="CT window")
            with gradio.Column(scale=3):
                question = gradio.Textbox(
                    label="Question (Enter asks); @r1 speaks of a region of an earlier answer", elem_id="question"
                )
                with gradio.Row():
                    button = gradio.Button("Ask", variant="primary", elem_id="ask")
                    stop = gradio.Button("Cancel", elem_id="cancel")
                state = gradio.Markdown("Ready.", elem_id="state")
                spans = gradio.HighlightedText(label="Answer", show_legend=False, elem_id="answer")
                shown = gradio.AnnotatedImage(
                    label="What it points at", elem_id="shown", format="png", buttons=["fullscreen"]
                )
                viewer = gradio.HTML(elem_id="viewer")
                with gradio.Accordion("Conversation", open=False):
                    talk = gradio.Chatbot(elem_id="talk", sanitize_html=True, render_markdown=False, height=240)
                with gradio.Row():
                    formats = gradio.Dropdown(
                        _formats(), value=["json", "png"], multiselect=True, label="Files", elem_id="formats"
                    )
                    save = gradio.Button("Make files", elem_id="save")
                saved = gradio.Files(label="Download", interactive=False, elem_id="saved")
        outcome = [visit, state, spans, shown, viewer, talk]
        files.upload(
            self.take, [files, visit, model, site], [visit, files, told, image, editor, region, *outcome[1:], saved]
        )
        image.select(self.pick, [how, region], region, show_progress="hidden")
        asked = dict(fn=self.ask, inputs=[visit, model, site, question, region, editor], outputs=outcome)
        gradio.on(
            [button.click, question.submit], **asked, show_progress="minimal", concurrency_limit=16, api_name="ask"
        )
        stop.click(self.cancel, None, state, queue=False, show_progress="hidden", api_name="cancel")
        spans.select(self.one, [visit], shown, show_progress="hidden")
        save.click(self.save, [visit, formats, model, site], saved, api_name="save")

    # -- handlers -----------------------------------------------------------------------------------------------
    def take(self, paths, visit: Visit, model: str, site: str, request: gradio.Request):
        """Keep an upload under an id and show it; the files that gradio wrote are deleted."""
        who = _owner(request)
        try:
            with _told():
                files = [self.uploads.take(path, None) for path in paths or ()]
                stored = self.core.images.put(who, files)
                source = self._source(who, stored.id, model, site)
        finally:
            for path in paths or ():
                self.uploads.delete(Path(path))
        visit = Visit(stored.id, plain_line(files[0][0]))
        kind = "volume" if source.is_volume else "image"
        size = " x ".join(map(str, source.content.array.shape if source.is_volume else source.content.rgb.shape[1::-1]))
        pixels = None if source.is_volume else source.content.rgb
        editor = None if pixels is None else {"background": pixels, "layers": [], "composite": pixels}
        answer = f"{for_markdown(visit.name)}: {kind} of {size}"
        viewer = _viewer(self._report(source)) if source.is_volume else ""
        flat = not source.is_volume  # a volume is looked at in its own viewer
        image = gradio.Image(pixels, visible=flat)
        shown = gradio.AnnotatedImage(None, visible=flat)
        return visit, None, answer, image, editor, "", "Ready.", [], shown, viewer, [], None

    def pick(self, how: str, region: str, event: gradio.SelectData):
        """A click: a point, or the next corner of a box."""
        x, y = (int(v) for v in event.index)
        known = _numbers(region)
        if how == "box" and len(known) == 2:
            (x1, x2), (y1, y2) = sorted((known[0], x)), sorted((known[1], y))
            return f"{x1:g}, {y1:g}, {x2 + 1:g}, {y2 + 1:g}"
        return f"{x}, {y}"

    def ask(self, visit: Visit, model, site, text: str, region: str, editor, request: gradio.Request) -> Iterator:
        """The answer as it grows, then what it points at."""
        who, key = _owner(request), request.session_hash
        skip = gradio.skip()
        with _told():
            if not text.strip():
                raise ValueError("write a question first")
            source = self._source(who, visit.image, model, site) if visit.image else None
            given = [] if source is None or source.is_volume else _given(region, editor, source.content.rgb.shape[:2])
            words, wanted = named_regions(text, visit.regions, given)
            question = self._question(who, visit, model, site, source, words, wanted)
            parts: queue.Queue = queue.Queue()
            ticket = self.core.submit(
                model, question, lambda answer: parts.put(("text", answer)),
                lambda what, done, total: parts.put(("step", f"{what} {done}" + (f" of {total}" if total else ""))),
            )  # fmt: skip
        self.tickets[key] = ticket
        ticket.future.add_done_callback(lambda _: parts.put(("end", "")))
        try:
            yield visit, "Waiting for the model ...", [], skip, skip, skip
            while (part := parts.get())[0] != "end":
                while parts.qsize() and parts.queue[0][0] != "end":  # only the newest is worth a message
                    part = parts.get()
                kind, answer = part
                spans = [(plain_text(answer), None)] if kind == "text" else skip
                yield visit, "Answering ..." if kind == "text" else for_markdown(answer), spans, skip, skip, skip
            with _told():
                try:
                    answer = ticket.future.result()
                except Problem as problem:
                    if problem.status == 499:
                        yield visit, "Cancelled.", [], skip, skip, skip
                        return
                    raise
            yield self._outcome(visit, source, words, answer, model, site)
        finally:
            ticket.cancel()
            self.tickets.pop(key, None)

    def cancel(self, request: gradio.Request) -> str:
        ticket = self.tickets.get(request.session_hash)
        if ticket is None:
            return "Nothing to cancel."
        ticket.cancel()
        return "Cancelling ..."

    def one(self, visit: Visit, event: gradio.SelectData, request: gradio.Request):
        """The place of the phrase that was chosen, alone; all of them again where it was alone."""
        if visit.prediction is None or visit.prediction.is_volume:
            return gradio.skip()
        chosen = event.value[1] if isinstance(event.value, list | tuple) and len(event.value) > 1 else None
        source = self._source(_owner(request), visit.image, visit.model, visit.site)
        return self._annotated(visit, source.content.rgb, only=chosen)

    def save(self, visit: Visit, formats: list[str], model: str, site: str, request: gradio.Request):
        """The newest answer as files; they are deleted within minutes."""
        with _told():
            if visit.prediction is None:
                raise ValueError("ask a question first")
            source = self._source(_owner(request), visit.image, model, site) if visit.image else None
            folder = tempfile.mkdtemp(dir=self.uploads.folder)
            name = Path(visit.name).stem.split(".")[0] or "answer"
            image = None if source is None else source.pixels
            return [str(p) for p in visit.prediction.save(folder, _file_name(name), formats or ["json"], image=image)]

    # -- parts --------------------------------------------------------------------------------------------------
    def _source(self, who: str, id_: str, model: str, site: str):
        with self.core.images.held(who, id_) as stored:
            return self.core.open(stored, model, site=site or "")

    def _question(self, who, visit: Visit, model, site, source, words, wanted) -> Question:
        content = self.core.images.get(who, visit.image).digest if visit.image else ""
        options = (("max_new_tokens", self.core.settings.max_new_tokens),)
        how = (("site", site or ""), ("modality", ""), ("window", None))
        history = tuple((role, as_plain_text(plain_text(answer)) or " ") for role, answer in visit.history)
        text = as_plain_text(plain_text(words))
        labels = tuple(line.strip() for line in text.split("\n") if line.strip())
        regions = tuple(region_of(one, "the region") for one in wanted)
        return Question(who, text, source, content, () if source is None or source.is_volume else history, regions,
                        json.dumps(wanted, sort_keys=True, default=str), how, options, labels=labels)  # fmt: skip

    def _outcome(self, visit: Visit, source, words: str, answer, model: str, site: str):
        prediction, first = answer.prediction, len(visit.regions) + 1
        history = [*visit.history, ("user", words), ("assistant", prediction.text or " ")]
        regions = [*visit.regions, *regions_to_json(prediction, first=first)]
        new = Visit(visit.image, visit.name, history, regions, prediction, first, model, site)
        talk = [{"role": role, "content": plain_text(text)} for role, text in new.history]
        seconds = sum(prediction.timing_s.values())
        state = f"Done: {len(prediction.regions)} regions, {seconds:.1f} s. Research use only."
        spans = gradio.HighlightedText(_spans(prediction, first), color_map=_colors(prediction, first))
        if source is not None and source.is_volume:
            shown, viewer = None, _viewer(self._report(source, prediction))
        else:
            shown, viewer = (None if source is None else self._annotated(new, source.content.rgb)), ""
        return new, state, spans, shown, viewer, talk

    def _annotated(self, visit: Visit, pixels, only: str | None = None):
        parts = []
        for number, region in enumerate(visit.prediction.regions, visit.first):
            label = _label(number, region)
            if only is not None and label != only:
                continue
            if region.mask is not None and region.mask.any():
                parts.append((region.mask.astype(np.float32), label))
            elif region.box_xyxy_px is not None:
                parts.append((tuple(round(v) for v in region.box_xyxy_px), label))
        value = (pixels, parts)
        return gradio.AnnotatedImage(value, color_map=_colors(visit.prediction, visit.first))

    def _report(self, source, prediction=None) -> str:
        """A volume with what was found, as one page that needs nothing from anywhere."""
        from unimed.io.html_report import as_html_report
        from unimed.io.result import Prediction

        made = prediction or Prediction("", geometry=source.content.geometry)
        with tempfile.TemporaryDirectory(dir=self.uploads.folder) as folder:
            ((_, write),) = as_html_report(made, source.content.array, deidentified=True).items()
            return write(Path(folder) / "view.html").read_text(encoding="utf-8")


def _owner(request) -> str:
    return getattr(request, "username", None) or LOCAL


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a request, as gradio shows it: one line, no markup of a visitor."""
    try:
        yield
    except Problem as problem:
        answer = problem.message + ("; upload the image again" if problem.status == 404 else "")
        raise gradio.Error(for_html(answer), print_exception=False) from None
    except (ValueError, OSError) as error:
        raise gradio.Error(for_html(plain_problem(error)), print_exception=False) from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in _NUMBERS.split(text.strip()) if part]
    except ValueError:
        return []


def _given(region: str, editor, shape: tuple[int, int]) -> list[dict]:
    """The region of a question: what was painted, else the numbers of a box or point.

    Raises:
        ValueError: numbers that are neither.
    """
    found: list[dict] = []
    for layer in (editor or {}).get("layers") or ():
        layer = np.asarray(layer)
        if layer.ndim == 3 and layer.shape[:2] == shape and layer[..., 3].any():
            found.append(_as_mask(layer[..., 3] > 0))
    numbers = _numbers(region or "")
    if not found and (region or "").strip():
        if len(numbers) == 4:
            found.append({"phrase": "region", "box_xyxy": numbers})
        elif len(numbers) == 2:
            y, x = np.ogrid[: shape[0], : shape[1]]
            radius = max(1.0, _POINT * min(shape))
            disc = (x - numbers[0]) ** 2 + (y - numbers[1]) ** 2 <= radius**2
            if not disc.any():
                raise ValueError(f"the point {region.strip()[:40]} lies outside the image")
            found.append(_as_mask(disc))
        else:
            raise ValueError("a region is x, y of a point or x1, y1, x2, y2 of a box, in pixels")
    return found


def _as_mask(mask: np.ndarray) -> dict:
    from unimed.io.rle import compress_counts, encode_mask

    runs = encode_mask(mask)
    runs = {"format": "coco_rle", "size": runs["size"], "counts": compress_counts(runs["counts"])}
    return {"phrase": "region", "box_xyxy": box_of(mask), "mask": runs}


def _label(number: int, region) -> str:
    absent = region.presence is not None and region.presence < 0.5
    return plain_line(f"r{number} {region.phrase}"[:60]) + (" (not there)" if absent else "")


def _colors(prediction, first: int) -> dict[str, str]:
    """Okabe-Ito colors, the same for the words and the place of a region."""
    return {_label(number, region): "#{:02x}{:02x}{:02x}".format(*COLORS[(number - 1) % len(COLORS)])
            for number, region in enumerate(prediction.regions, first)}  # fmt: skip


def _spans(prediction, first: int) -> list[tuple[str, str | None]]:
    """The text in pieces, those that point at something with their label; what has no words stands behind."""
    if prediction.classes is not None:
        return [(f"{label}: {value:.3f}\n", None) for label, value in prediction.classes.ranked()]
    text, place, pieces, loose = prediction.text, 0, [], []
    named = list(enumerate(prediction.regions, first))
    for number, region in sorted(named, key=lambda pair: pair[1].phrase_span or (10**9, 0)):
        span = region.phrase_span
        if span is None or span[0] < place:
            loose.append((plain_text(region.phrase), _label(number, region)))
            continue
        pieces += [(plain_text(text[place : span[0]]), None), (plain_text(text[slice(*span)]), _label(number, region))]
        place = span[1]
    pieces.append((plain_text(text[place:]), None))
    return [piece for piece in pieces if piece[0]] + loose


def _viewer(page: str) -> str:
    # A sandbox without an origin: the page can reach nothing of the server.
    page = html.escape(page, quote=True)
    return f'<iframe class="report" title="Slices" sandbox="allow-scripts" srcdoc="{page}"></iframe>'


def _formats() -> Sequence[str]:
    from unimed.registry import WRITERS, registered

    return sorted(registered(WRITERS))


def _file_name(text: str) -> str:
    from unimed.names import safe_name

    return safe_name(text)
