"""One mixture over the data of all systems and records of your own, as entries for `train_data=dict(mixture=...)`.

Every entry says its task, for `balance`, and what it `needs` on this disk, so that sets that are not there are left out
by name. Layouts below the root are those of the systems' own configs (docs/data.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from unimed.data.readers import unibiomed_mixture
from unimed.structures import Task

#: Tasks of records that are also asked mirrored, in other words and for what cannot be there.
HARD = (Task.REFERRING.value, Task.ABSENT.value)
RECORD_TASKS = ("referring", "absent", "box", "vqa", "classification", "caption", "report", "region", "volume")
#: Sources of image-text pairs, as `tools/prepare_data.py unimed-clip` names them.
PAIRS = (
    "radimagenet chexpert openi chest_xray8 mimic_cxr rocov2 pmc_oa llava_med_alignment llava_med_instruct quilt_1m "
    "retina_part1 retina_part2_den retina_part3_mm_retinal"
).split()
SYSTEMS = ("records", "unibiomed", "uni_med", "umedground", "biomedparse", "unimed_clip")


def mixture(
    root: str = "data",
    records: Iterable[str] = ("sample", "mine"),
    systems: Iterable[str] = SYSTEMS,
    hard: Mapping | None = None,
    slices: int = 8,
) -> list[dict]:
    """Entries of the unified mixture.

    Args:
        root: folder that holds `Biomed`, `uni_med`, `ReasonGro`, `MS_CXR`, `BiomedParse`, `unimed` and record folders.
        records: names of record folders below the root.
        systems: of `SYSTEMS`, whose data are taken.
        hard: arguments of `HardPromptDataset` for questions for masks; {} takes its own, None asks none.
        slices: of a volume that are shown in training.

    Raises:
        ValueError: an unknown system.
    """
    if unknown := [name for name in systems if name not in SYSTEMS]:
        raise ValueError(f"unknown system {unknown[0]!r}; known are {', '.join(SYSTEMS)}")
    of = {
        "records": lambda: [entry for name in records for entry in _records(f"{root}/{name}", name, hard, slices)],
        "unibiomed": lambda: _unibiomed(f"{root}/Biomed", hard),
        "uni_med": lambda: _uni_med(f"{root}/uni_med"),
        "umedground": lambda: _umedground(root),
        "biomedparse": lambda: _biomedparse(f"{root}/BiomedParse", hard),
        "unimed_clip": lambda: _pairs(f"{root}/unimed"),
    }
    return [entry for system in systems for entry in of[system]()]


def _entry(name: str, task: str, needs: str, dataset: dict, hard: Mapping | None = None) -> dict:
    if hard is not None and task in HARD:
        dataset = dict(type="HardPromptDataset", dataset=dataset, **hard)
    return dict(name=name, task=task, needs=needs, dataset=dataset)


def _records(folder: str, name: str, hard, slices: int) -> list[dict]:
    entries = []
    for task in RECORD_TASKS:
        dataset = dict(type="RecordDataset", path=folder, tasks=[task])
        dataset |= dict(slices=slices, foreground_fraction=0.6) if task == "volume" else {}
        entries.append(_entry(f"records {name} {task}", task, f"{folder}/records/train.jsonl", dataset, hard))
    return entries


def _unibiomed(root: str, hard) -> list[dict]:
    words = {"segmentation": "referring", "disease": "report", "vqa": "vqa", "report": "report", "caption": "caption"}
    entries = []
    for entry in unibiomed_mixture.mixture(root):
        kind = entry["name"].split(" ")[0]
        file = Path(entry["dataset"]["root"], unibiomed_mixture.PARTS[kind][4])
        entries.append(_entry(f"unibiomed {entry['name']}", words.get(kind, kind), str(file), entry["dataset"], hard))
    return entries


def _uni_med(root: str) -> list[dict]:
    slake, medical, mnist = f"{root}/Slake-VQA", f"{root}/SA-Med2D-20M", f"{root}/MedMNIST"
    boxes = dict(region_dir=f"{medical}/regions_small_train", image_dir=f"{medical}/images_small_train")
    path_vqa = dict(annotations=f"{root}/Path-VQA/qas/train_vqa.pkl", image_root=f"{root}/Path-VQA/images")
    medpix = dict(table=f"{root}/MedPix/data_csv/MedPix_single_train.csv", image_dir=f"{root}/MedPix/images")
    mimic = dict(annotations=f"{root}/MIMIC/annotation.json", image_root=f"{root}/MIMIC-CXR-JPG")
    parts = [
        ("MedQA", "qa", f"{root}/MedQA", "MedQADataset", dict(root=f"{root}/MedQA")),
        ("PubMedQA", "qa", f"{root}/PubMedQA", "PubMedQADataset", dict(root=f"{root}/PubMedQA")),
        ("Slake-VQA", "vqa", slake, "SlakeVQADataset", dict(root=slake)),
        ("Path-VQA", "vqa", path_vqa["annotations"], "PathVQADataset", path_vqa),
        ("Slake boxes", "box", slake, "SlakeBoxDataset", dict(root=slake, task="refer")),
        ("Slake regions", "region", slake, "SlakeBoxDataset", dict(root=slake, task="identify")),
        ("SA-Med2D boxes", "box", boxes["region_dir"], "SAMedBoxDataset", dict(boxes, task="refer")),
        ("SA-Med2D regions", "region", boxes["region_dir"], "SAMedBoxDataset", dict(boxes, task="identify")),
        ("MedPix", "caption", medpix["table"], "MedPixDataset", medpix),
        ("MIMIC-CXR", "report", mimic["annotations"], "MimicReportDataset", mimic),
        *(
            (name, "classification", f"{mnist}/{name}_224.npz", "MedMnistDataset", dict(path=f"{mnist}/{name}_224.npz"))
            for name in ("dermamnist", "organsmnist")
        ),
    ]
    return [
        _entry(f"uni_med {name}", task, needs, dict(type=kind, **given)) for name, task, needs, kind, given in parts
    ]


def _umedground(root: str) -> list[dict]:
    reasoned = f"{root}/ReasonGro/MS_CXR/MS_CXR_S_train.pth"
    aligned = f"{root}/MS_CXR/MS_CXR_Local_Alignment_v1.0.0.json"
    shared = dict(type="MedicalGroundingDataset", split="train")
    return [
        _entry(
            "umedground MRG-MS-CXR", "mrg", reasoned,
            dict(shared, path=reasoned, images=f"{root}/ReasonGro/MS_CXR/images", format="mrg"),
        ),
        _entry(
            "umedground MS-CXR", "mrg", aligned,
            dict(shared, path=aligned, images=f"{root}/MIMIC-CXR-JPG", reports=f"{root}/MIMIC-CXR/files",
                 format="ms_cxr"),
        ),
    ]  # fmt: skip


def _biomedparse(root: str, hard) -> list[dict]:
    dataset = dict(type="BiomedParseDataset", root=root, split="train", prompts=4, absent=0.15, sentence="random")
    return [_entry("biomedparse images", "referring", f"{root}/train.json", dataset, hard)]


def _pairs(root: str) -> list[dict]:
    return [
        _entry(f"unimed_clip {name}", "caption", shards, dict(type="ImageTextShards", shards=shards, name=name))
        for name in PAIRS
        if (shards := f"{root}/{name}/dataset-*.tar")
    ]
