"""`unimed train --data FOLDER`: the options of a run on your own records, without a config written."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from unimed.data.checks import patient_leaks
from unimed.data.readers.records import RecordDataset
from unimed.files import atomic_folder

CONFIG = "configs/quickstart/own_data.py"
#: Slices per volume and the fraction of them that shows what is pointed at.
_SLICES = dict(slices=8, foreground_fraction=0.6)
#: What a run misses that has no records of a split.
_WITHOUT = {"val": "nothing is validated during the training", "test": "there is nothing for `unimed test`"}
#: Seconds that other ranks wait for rank 0 to make the model to start from.
_START_TIMEOUT_S = 1800.0


def options_for(
    data: str, start: str | None, config: str | None = None, work_dir: str | None = None
) -> tuple[str, str, dict]:
    """What `train` is given for a folder of records.

    Args:
        data: folder with records/train.jsonl; val.jsonl and test.jsonl are used where they hold records.
        start: folder or published checkpoint of the model to train on; None makes a small one in the run folder, with
            the words of the records.
        config: for the other values (optimizer, steps, ...); `CONFIG` by default.
        work_dir: of the run; "work_dirs/" and the name of the folder by default.

    Returns:
        (config, work_dir, dotted options).

    Raises:
        FileNotFoundError, RecordError: there are no records to train on.
    """
    folder = Path(data)
    train = RecordDataset(folder, "train")
    if not len(train):
        raise FileNotFoundError(f"{train.file}: no records; `unimed prepare folder` makes them of images and masks")
    work_dir = work_dir or f"work_dirs/{folder.resolve().name}"
    options: dict = {"train_data.path": str(folder)}
    if any("volume" in record for record in train.records):
        options |= {f"train_data.{key}": value for key, value in _SLICES.items()}
    splits = {"train": train.records}
    for split in ("val", "test"):
        if (folder / "records" / f"{split}.jsonl").is_file() and len(there := RecordDataset(folder, split)):
            options[f"{split}_data.path"] = str(folder)
            splits[split] = there.records
        else:
            options[f"{split}_data"] = None
            _remark(f"{data}: no record is in {split}; {_WITHOUT[split]}")
    if leaks := patient_leaks(splits):
        several = f"{len(leaks)} patients are" if len(leaks) > 1 else "1 patient is"
        _remark(
            f"{data}: {several} in several splits, so scores will be too good: {'; '.join(leaks[:3])}"
            f"{'; ...' if len(leaks) > 3 else ''}. Split whole patients (`unimed prepare folder --patient-pattern`); "
            f"`unimed check-data {data}` names them all"
        )
    options["task.model"] = start or _small_model(folder, Path(work_dir) / "start")
    return config or CONFIG, work_dir, options


def _remark(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr)


def _small_model(data: Path, destination: Path) -> str:
    """Make the model once: by rank 0, while others wait, and not again where a run goes on."""
    if (destination / "config.json").is_file():
        return str(destination)
    if int(os.environ.get("RANK", "0")):
        end = time.monotonic() + _START_TIMEOUT_S
        while not (destination / "config.json").is_file():
            if time.monotonic() > end:
                raise TimeoutError(f"{destination}: rank 0 made no model in {_START_TIMEOUT_S:.0f} s; see its message")
            time.sleep(0.5)
        return str(destination)
    from unimed.commands.new_model import make_small

    with atomic_folder(destination) as folder:
        print(make_small(folder, data))
    return str(destination)
