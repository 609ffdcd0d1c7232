"""Image features on disk, by the content of the image and of the model: the same image is encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.io.images import ROAD_VERSION
from unimed.io.write import write_npz


def model_fingerprint(model) -> str:
    """Hash of weights, preprocessing and the reading of images; another model or size never meets its features."""
    from unimed.models.weights import weights_digest

    config = model.config
    road = (
        "raw features",
        ROAD_VERSION,
        config.image_size,
        sorted(config.preprocess_cfg.items()),
        model.processor.compat,
    )
    return hashlib.sha256(f"{weights_digest(model)} {road!r}".encode()).hexdigest()[:24]


class FeatureCache:
    """Features of one model. `encode(paths)` gives those of the files, new ones computed in batches and kept.

    Args:
        model: a `ClipModel`.
        folder: of the cache; None keeps nothing.
        site: CT window of all images.

    Every part is written whole or not at all; several runs may share a folder.
    """

    def __init__(self, model, folder: str | Path | None, site: str = ""):
        self.model, self.site = model, site
        self.folder = None
        self.known: dict[str, np.ndarray] = {}
        self.hits = self.misses = 0
        if folder is not None:
            name = model_fingerprint(model) + (f"-{site}" if site else "")
            self.folder = Path(folder) / name
            for part in sorted(self.folder.glob("*.npz")):
                try:
                    with np.load(part, allow_pickle=False) as archive:
                        self.known.update(zip(archive["keys"].tolist(), archive["features"], strict=True))
                except (OSError, ValueError, KeyError):
                    continue  # a damaged part is computed again

    def encode(self, paths: Sequence[str | Path], batch_size: int = 64, normalize: bool = True) -> np.ndarray:
        """Features [N, D] float32 of image files.

        Args:
            normalize: to unit length; False gives them as the tower does, as class norm needs them.

        Raises:
            ImageError, ReadError, FileNotFoundError: the file is named.
        """
        keys = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
        todo = {key: path for key, path in zip(keys, paths, strict=True) if key not in self.known}
        self.hits += len(keys) - len(todo)
        self.misses += len(todo)
        items = list(todo.items())
        for start in range(0, len(items), batch_size):
            part = items[start : start + batch_size]
            features = self.model.encode_image([str(path) for _, path in part], normalize=False, site=self.site)
            features = features.numpy()
            self.known.update(zip((key for key, _ in part), features, strict=True))
            self._keep([key for key, _ in part], features)
        if not keys:
            return np.zeros((0, self.model.config.model_cfg["embed_dim"]), np.float32)
        features = np.stack([self.known[key] for key in keys])
        length = np.linalg.norm(features, axis=1, keepdims=True) if normalize else 1.0
        return features / np.maximum(length, np.float32(1e-12))

    def similarity(self, paths: Sequence[str | Path], labels, templates=None, class_norm: bool = False):
        """Names of the classes, and the similarity [N, C] of image files to them; arguments as `ClipModel.classifier`.

        Args:
            class_norm: z-score every dimension over the classes, of the images' raw features too, as published.
        """
        names, weights = self.model.classifier(labels, templates, class_norm)
        features = self.encode(paths, normalize=not class_norm)
        if class_norm:
            mean, std = (value.numpy() for value in self.model.class_statistics(labels, templates))
            features = (features - mean) / std
            features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.float32(1e-12))
        return names, features @ weights.numpy().T

    def _keep(self, keys: list[str], features: np.ndarray) -> None:
        if self.folder is not None:
            name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
            write_npz(self.folder / f"{name}.npz", {"keys": np.array(keys), "features": features})
