"""The sets UniBiomed is trained on, as entries of a training mixture."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

SEGMENTATION = """
ACDC amos22/CT amos22/MRI BreastUS CAMUS CDD-CESM COVID-19_CT COVID-QU-Ex CXR_Masks_and_Labels DRIVE FH-PS-AOP
LGG LIDC-IDRI LiverUS MSD/Task01_BrainTumour MSD/Task02_Heart MSD/Task03_Liver MSD/Task04_Hippocampus
MSD/Task05_Prostate MSD/Task06_Lung MSD/Task07_Pancreas MSD/Task08_HepaticVessel MSD/Task09_Spleen
MSD/Task10_Colon NeoPolyp OCT-CME Radiography/COVID Radiography/Lung_Opacity Radiography/Normal
Radiography/Viral_Pneumonia REFUGE siim-acr-pneumothorax UWaterlooSkinCancer PanNuke CoCaHis CryoNuSeg
DigestPath2019_colonoscopy_tissue_segment GlaS SICAPv2 WSSS4LUAD BTCV WORD KiTS2023 AIIB23 aorta Flare22
RadGenome
""".split()
VOLUMES = "Task06_Lung Task09_Spleen Task10_Colon COVID-19_CT".split()
DISEASES = """
BrainTumor ColonCancer Fibrotic LiverTumor LungTumor pneumothorax ProstateCancer Retinal BreastTumor COVID19
KidneyTumor LungNodule PancreasTumor ColonPolyp Skin NoFindings
""".split()
REGIONS = """
BreastUS CDD-CESM COVID-19_CT COVID-QU-Ex LGG LIDC-IDRI MSD/Task03_Liver MSD/Task06_Lung MSD/Task07_Pancreas
MSD/Task08_HepaticVessel MSD/Task10_Colon NeoPolyp OCT-CME Radiography/COVID siim-acr-pneumothorax
UWaterlooSkinCancer KiTS2023 PanNuke CoCaHis CryoNuSeg GlaS SICAPv2 WSSS4LUAD
""".split()

#: Task -> (names, folder below the root, reader, arguments, file of the training split).
PARTS = {
    "vqa": (["RadGenome"], "", "RadGenomeDataset", dict(kind="vqa", repeats=2), "train_parse.json"),
    "report": (["RadGenome"], "", "RadGenomeDataset", dict(kind="report", repeats=2), "train_parse.json"),
    "caption": (["MedTrinity"], "", "MedTrinityDataset", dict(min_samples=5000), "train.json"),
    "segmentation": (
        SEGMENTATION,
        "",
        "BiomedDataset",
        dict(kind="segmentation", sentence="random", min_samples=5000),
        "train.json",
    ),
    # Unlike published, three slices in ten may lie outside the object, so that emptiness is learnt too.
    "volume": (
        VOLUMES,
        "3D",
        "BiomedVolumeDataset",
        dict(slices=10, foreground_fraction=0.7, repeats=10),
        "meta_train.json",
    ),
    "disease": (
        DISEASES,
        "Disease",
        "BiomedDataset",
        dict(kind="disease", sentence="random", min_samples=5000),
        "train.json",
    ),
    # A painted box is what the published checkpoint knows; region_style="tokens" teaches region prompts instead.
    "region": (
        REGIONS,
        "",
        "BiomedDataset",
        dict(kind="region", sentence="random", region_style="box", min_samples=3000),
        "train.json",
    ),
}


def mixture(
    root: str,
    tasks: Iterable[str] = tuple(PARTS),
    without: Iterable[str] = (),
    skip_absent: bool = False,
    **changes,
) -> list[dict]:
    """Entries for `train_data=dict(mixture=...)`: every set once per task it is trained on, by its length.

    Args:
        root: folder of the tree.
        tasks: of `PARTS`.
        without: names of sets to leave out.
        skip_absent: leave out sets that are not on this disk, and say which; otherwise a missing set stops training
            before it begins.
        changes: arguments of every reader, such as `pools`, `compat` or `prompt_style`.

    Raises:
        ValueError: an unknown task or set, or nothing left.
    """
    from unimed.data.readers.unibiomed import BiomedDataset
    from unimed.registry import did_you_mean, today

    tasks, without = list(tasks), set(without)
    changes = today(changes, BiomedDataset.renamed_arguments, "mixture")
    names = {name for part in PARTS.values() for name in part[0]}
    for given, known, what in ((tasks, PARTS, "task"), (without, names, "set")):
        for name in given:
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, known)} Known are {sorted(known)}")
    entries, absent = [], []
    for task in tasks:
        of_task, below, reader, arguments, file = PARTS[task]
        for name in of_task:
            folder = Path(root, below, name)
            if name in without:
                continue
            if skip_absent and not (folder / file).is_file():
                absent.append(f"{task} {name}")
                continue
            shared = dict(prompt_style="random", resize_masks=True) | changes
            dataset = dict(type=reader, root=str(folder), **(arguments | shared))
            entries.append(dict(name=f"{task} {name}", dataset=dataset))
    if absent:
        print(f"{root}: {len(absent)} sets are not there and left out: {', '.join(absent)}", file=sys.stderr)
    if not entries:
        raise ValueError(f"{root}: no set is left of tasks {', '.join(tasks)}")
    return entries
