"""The zero-shot sets of UniMed-CLIP as samples: an image, and which of the classes it shows."""

from __future__ import annotations

from pathlib import Path

from unimed.data import canonical
from unimed.data.readers.zero_shot_sets import ZeroShotSetError, chosen, read_set
from unimed.io.errors import ImageError, ReadError
from unimed.io.images import load as load_image
from unimed.registry import DATASETS
from unimed.structures import Intent, Sample


@DATASETS.register_module()
class ZeroShotDataset:
    """A set of the catalog by its id; the classes are the choices, and every image is asked the same question.

    Args:
        root: the folder of this set. name: its id.

    Raises:
        ZeroShotSetError: an unknown id, what `read_set` raises, or, on access, an image that cannot be read.
    """

    def __init__(self, root, name: str, limit: int | None = None):
        (self.set,) = chosen([name])
        self.paths, self.targets = read_set(self.set, root)
        self.paths, self.root = self.paths[:limit], Path(root)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path, names = self.paths[index], self.set.names
        try:
            image = load_image(path)
        except (FileNotFoundError, ReadError, ImageError) as error:
            raise ZeroShotSetError(f"{self.set.id}: image {path}: {error}") from error
        intent = Intent("classes", f"{', '.join(names[:-1])} or {names[-1]}")
        return Sample(
            images=(image.pixels,), geometry=image.geometry, sample_id=f"{self.set.id}-{index}",
            modality=self.set.modality, conversation=(("user", canonical.question(intent)),
                                                      ("assistant", names[self.targets[index]])),
            intent=intent, labels={"task": "classification", "choices": list(names)}, source=self.set.id,
            label_origin="published with the data set",
        )  # fmt: skip
