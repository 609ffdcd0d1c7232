"""The predictor of `unimed predict`: a model of any family asked the same texts about every record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from unimed.inference.answering import answer_source
from unimed.inference.asking import open_source
from unimed.inference.cohort.records import CohortRecord
from unimed.inference.runs import run_settings
from unimed.workers import own_slot


@dataclass
class AskingModel:
    """Loads a model and answers `texts` about each record, or the texts of its manifest.

    Args:
        model: folder or published checkpoint.
        device, dtype: of `unimed.load`; "auto" gives each process on a machine a GPU of its own where there are any.
        choices: series, phase, irregular of `read_volume`.
        task, plane, formats, deidentified, site, modality, window, page, max_new_tokens: flags of `unimed predict`.
    """

    model: str
    texts: tuple[str, ...]
    device: str = "auto"
    dtype: str = "auto"
    task: str | None = None
    plane: str = "axial"
    formats: tuple[str, ...] = ()
    deidentified: bool = False
    site: str = ""
    modality: str = ""
    window: tuple[float, float] | None = None
    page: int | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 256
    loaded: Any = field(default=None, repr=False)

    def settings(self) -> dict[str, Any]:
        """What decides the answers, with the content of the model."""
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("loaded", "device")}
        return run_settings(given)

    def prepare(self) -> None:
        from unimed.models.auto import load

        self.loaded = load(self.model, device=self._device(), dtype=self.dtype)

    def _device(self) -> str:
        import torch

        slot, count = own_slot(), torch.cuda.device_count()
        return f"cuda:{slot % count}" if self.device == "auto" and slot is not None and count > 1 else self.device

    def __call__(self, record: CohortRecord, path: Path, folder: Path) -> dict[str, Any]:
        site, modality = record.site or self.site, record.modality or self.modality
        how = {"site": site, "modality": modality, "window": self.window}
        choices = {**self.choices} | ({"series": record.series} if record.series else {})
        windows = getattr(self.loaded.config, "ct_windows", None)
        source = open_source(
            path, choices=choices, page=self.page, **how, **({"windows": windows} if windows else {})
        )  # fmt: skip
        return answer_source(
            self.loaded, source, record.texts or self.texts, folder, plane=self.plane, how=how, formats=self.formats,
            deidentified=self.deidentified, name=record.name, timed=False, max_new_tokens=self.max_new_tokens,
            task=self.task,
        )  # fmt: skip
