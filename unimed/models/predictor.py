"""`predict` and `predict_batch`, the same for every family, for images and volumes alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from unimed.geometry import Geometry
from unimed.io.images import Image
from unimed.io.result import Prediction
from unimed.io.volumes import Volume, open_source
from unimed.registry import keywords, refuse_options
from unimed.structures import as_list, identity

#: Choices of what is read from a source and how its grey values are shown; the others are a family's own.
OF_THE_SOURCE = ("frame", "series", "phase", "irregular", "percentiles")


class Predictor:
    """Mixin of models that answer questions about images and volumes.

    A family gives `_predict_images(images, texts, regions, batch_size=, **options)`, whose images are `Image`s, lists
    of them or None, and `_predict_volume(volume, texts, regions, site=, modality=, window=, plane=, **options)`; both
    return one `Prediction` per text. Where one of them hands `options` on, `image_options` or `volume_options` says
    what they may be.
    """

    if TYPE_CHECKING:  # what a family brings
        config: Any
        _predict_images: Callable[..., list[Prediction]]
        _predict_volume: Callable[..., list[Prediction]]

    #: Images worked on together by default.
    prediction_batch = 8

    def predict(
        self,
        image,
        text: str | Sequence[str],
        regions: Sequence | None = None,
        *,
        site: str = "",
        modality: str = "",
        window: tuple[float, float] | str | None = None,
        plane: str | None = None,
        **options,
    ) -> Prediction | list[Prediction]:
        """Answer a question about an image or a volume and point at what the answer says.

        Args:
            image: path (also of a DICOM folder), PIL image, array, DICOM dataset, (array, `Geometry`) as `unimed.read`
                gives them; None for a question without image. What is a volume is told by the data, see
                `unimed.io.volumes.is_volume`: three axes of grey values, each longer than one. Masks have the shape of
                the source.
            text: one question, or several about the same image (it is encoded once); a list gives a list.
            regions: what the question speaks of as "region1", "region2", ...: masks [H, W], boxes (x1, y1, x2, y2) in
                pixels of the image, or `Region`s; for families that read them.
            site, modality, window: choose the grey values of deep images and of volumes, see
                `unimed.io.windows.choose_window`; what was chosen is in `image.steps` of the result.
            plane: how a volume is cut: "axial", "coronal" or "sagittal"; None leaves it to the family.
            options: `frame` takes one slice or page as an image; `series`, `phase`, `irregular` choose within files
                (see `unimed.read`); `percentiles` as `window`; all others are of the family, see its `_predict_images`
                and `_predict_volume`.

        Raises:
            TypeError: an option that this family does not take, with the valid ones.
            ReadError, ImageError, VolumeError, PromptError: what cannot be read or asked; nothing is computed then.
        """
        single = isinstance(text, str)
        texts = _texts([text] if isinstance(text, str) else text)
        given = None if regions is None else [regions] * len(texts)
        choices: dict[str, Any] = dict(site=site, modality=modality, window=window, plane=plane)
        found = self.predict_batch([image] * len(texts), texts, given, **choices, **options)
        return found[0] if single else found

    def predict_batch(
        self,
        images: Sequence,
        texts: Sequence[str],
        regions: Sequence | None = None,
        *,
        batch_size: int | None = None,
        site: str = "",
        modality: str = "",
        window: tuple[float, float] | str | None = None,
        plane: str | None = None,
        **options,
    ) -> list[Prediction]:
        """The same answers as one by one, faster; images and volumes may be mixed.

        Args:
            images: one per text: a list, an array [N, H, W] or [N, H, W, 3], a sequence or dataset that makes its items
                when asked, or a generator. The same image given twice is read and encoded once.
            regions: one list per text as in `predict`, None where a question has none.
            batch_size: images worked on together.
            others: as in `predict`; a `task` may be one for all or one per text.

        Raises:
            ValueError: lists of different lengths, one text in place of a list, or a `batch_size` below 1; and what
                `predict` raises.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        _check_options(options, {*self.image_options(), *self.volume_options()})
        images, texts = as_list(images), _texts(texts)
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images for {len(texts)} texts; give one image per text")
        if isinstance(regions, str) or (regions and all(isinstance(one, str) for one in regions)):
            options, regions = {"task": regions} | options, None  # the third argument as Uni-Med's users write it
        regions = [None] * len(texts) if regions is None else list(regions)
        if len(regions) != len(texts):
            raise ValueError(f"{len(regions)} lists of regions for {len(texts)} texts; give one per text, or None")
        tasks = options.pop("task", None)
        given = tasks is not None
        tasks = list(tasks) if given and not isinstance(tasks, str) else [tasks] * len(texts)
        if len(tasks) != len(texts):
            raise ValueError(f"{len(tasks)} tasks for {len(texts)} texts; give one for all, or one per text")
        shown = dict(site=site, modality=modality, window=window)
        choices = {name: options.pop(name) for name in OF_THE_SOURCE if name in options}
        sources = self._open(images, shown, choices)
        predictions: list = [None] * len(texts)
        flat = [place for place, source in enumerate(sources) if not isinstance(source, Volume)]
        given_options = [*options, *(["task"] if given else [])]
        if flat:
            _check_options(given_options, self.image_options(), " for images")
        if len(flat) < len(sources):
            _check_options(given_options, self.volume_options(), " for volumes")
        if flat:
            size = self.prediction_batch if batch_size is None else batch_size
            chosen = ([values[place] for place in flat] for values in (sources, texts, regions))
            told: dict[str, Any] = {"modality": modality, "site": site} if self.given_modality else {}
            told |= {"task": [tasks[place] for place in flat]} if given else {}
            for place, one in zip(flat, self._predict_images(*chosen, batch_size=size, **told, **options), strict=True):
                predictions[place] = one
        volumes: dict[tuple, list[int]] = {}
        for place, source in enumerate(sources):
            if isinstance(source, Volume):
                volumes.setdefault((id(source), tasks[place]), []).append(place)
        shown |= {"percentiles": choices["percentiles"]} if "percentiles" in choices else {}
        for (_, task), places in volumes.items():
            told = {"task": task} if given else {}
            asked = ([values[place] for place in places] for values in (texts, regions))
            found = self._predict_volume(sources[places[0]], *asked, **shown, plane=plane, **told, **options)
            for place, one in zip(places, found, strict=True):
                predictions[place] = one
        return predictions

    @classmethod
    def image_options(cls) -> set[str]:
        """Names of the options of this family for images, beside those of `predict_batch`."""
        return keywords(cls._predict_images)

    @classmethod
    def volume_options(cls) -> set[str]:
        """Names of the options of this family for volumes, beside those of `predict_batch`."""
        return keywords(cls._predict_volume)

    #: Whether images are predicted otherwise where their modality and site are known.
    given_modality = False

    def _open(self, images: Sequence, shown: dict, choices: dict) -> list:
        """`Image`s, `Volume`s, lists of images (several of one question) or None; the same object is read once."""
        windows = getattr(self.config, "ct_windows", None)
        opened: dict = {}
        keys: dict = {}

        def one(image):
            key = keys[id(image)] = keys.get(id(image)) or identity(image)
            if key not in opened:
                opened[key] = open_source(image, windows=windows, **shown, **choices)
            return opened[key]

        def several(image):
            found = [one(part) for part in image]
            wrong = [number for number, part in enumerate(found, 1) if not isinstance(part, Image)]
            if wrong:
                raise ValueError(f"image {wrong[0]} of {len(found)} of one question is a volume; ask about it alone")
            return found

        # An array with its geometry is one source, any other sequence several images of one question.
        return [None if image is None else several(image) if _is_list(image) else one(image) for image in images]


def _check_options(given: Collection[str], taken: Collection[str], of: str = "") -> None:
    """Raises TypeError for an option that is not `taken`, nor one of `predict_batch` or of the source."""
    refuse_options(given, {*taken, *keywords(Predictor.predict_batch), *OF_THE_SOURCE}, "predict", of)


def _texts(texts) -> list:
    """Questions as a list; a single one would be read letter by letter."""
    if texts is None or isinstance(texts, str):
        given = "none" if texts is None else f"the text {texts!r} alone"
        raise ValueError(f"give a question, or a list with one per image; got {given}")
    return list(texts)


def _is_list(image) -> bool:
    return isinstance(image, list) or (isinstance(image, tuple) and not isinstance(image[-1], Geometry))


def refuse_regions(regions: Sequence, what: str) -> None:
    """Raises ValueError where regions were given to a model that reads none."""
    if any(one is not None and len(one) for one in regions):
        raise ValueError(f"regions are not read by {what}; leave regions out")
