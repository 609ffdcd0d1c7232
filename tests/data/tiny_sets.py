"""Every registered data set with a few samples on disk, as a config that builds it."""

import json

import numpy as np
from data.readers import test_biomedparse as parse_png
from data.readers import test_biomedparse_volumes as parse_volumes
from data.readers import test_umedground as grounding
from data.readers import test_uni_med as uni_med
from data.readers import test_unibiomed as tree
from data.readers.test_shards import shard
from evaluation.harness import layouts
from PIL import Image

from unimed.data.prepare import repack
from unimed.data.readers.records import RecordDataset
from unimed.evaluation.benchmarks import benchmark


def records(root):
    """Records of every task, with masks, boxes, a volume and something that is not there."""
    for name in ("records", "images", "masks"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(root / "images/a.png")
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 15:45] = 255
    Image.fromarray(mask).save(root / "masks/a.png")
    import nibabel

    for name, values in (("images/v", rng.integers(0, 255, (12, 10, 4))), ("masks/v", np.ones((12, 10, 4)))):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.uint8), np.eye(4)), root / f"{name}.nii.gz")
    liver, box = dict(phrase="liver", mask="masks/a.png"), dict(phrase="liver", box_xyxy_px=[15, 10, 45, 30])
    image = dict(image="images/a.png")
    rows = [
        dict(task="referring", question="Segment the liver.", answer="<p> liver </p> [SEG].", regions=[liver], **image),
        dict(task="box", question="Where is it?", answer="The <p> liver </p> is at [BOX].", regions=[box], **image),
        dict(task="vqa", question="Is it normal?", answer="yes", **image),
        dict(task="classification", question="Which?", answer="liver", choices=["liver", "lung"], **image),
        dict(task="caption", question="What is shown?", answer="A liver.", **image),
        dict(task="report", question="Report.", answer="A <p> liver </p> [SEG] and more.", regions=[liver], **image),
        dict(task="region", question="What is region1?", answer="The liver.", regions=[liver], **image),
        dict(
            task="absent", question="Segment the tumor.", answer="There is no tumor.", **image,
            regions=[dict(phrase="tumor", present=False)],
        ),
        dict(
            task="volume", question="Segment the liver.", answer="It is [SEG].", volume="images/v.nii.gz",
            regions=[dict(phrase="liver", mask="masks/v.nii.gz")],
        ),
    ]  # fmt: skip
    lines = [json.dumps(dict(id=str(number), patient_id="p", split="train") | row) for number, row in enumerate(rows)]
    (root / "records" / "train.jsonl").write_text("\n".join(lines))
    return root


#: Data sets that benchmarks alone read -> the benchmark whose drawn cases they are shown.
OF_BENCHMARKS = {
    "VqaRadDataset": "vqa/vqa_rad", "PmcVqaDataset": "vqa/pmc_vqa", "OmniMedVqaDataset": "vqa/omnimedvqa",
    "MedXpertQaDataset": "vqa/medxpertqa_mm", "MmmuMedDataset": "vqa/mmmu_med",
    "PhraseGroundingDataset": "boxes/chestxray8", "PadChestGrDataset": "boxes/padchest_gr",
    "DecathlonDataset": "masks/msd_liver", "TotalSegmentatorDataset": "masks/totalsegmentator",
    "ReXGroundingCtDataset": "masks/rexgroundingct", "IuReportDataset": "reports/iu_xray",
    "ZeroShotDataset": "zero_shot/acl_mri",
}  # fmt: skip


def benchmark_sets(root):
    """{data set: config} of those that benchmarks read, as their declarations build them."""
    configs = {}
    for name, of in OF_BENCHMARKS.items():
        one, folder = benchmark(of), root / name
        layouts.maker_of(of)(folder)
        places = {argument: str(folder / place) for argument, place in one.files.items()}
        options = {} if one.samples else one.reader_options
        configs[name] = dict(type=name, **options, **places, **one.test)
    return configs


def build_all(root):
    """{data set with its kind: config}; every registered class is there."""
    own = str(records(root / "own"))
    for name, build in (("coco", tree.coco), ("radgenome", tree.radgenome), ("volume", tree.volume)):
        (root / name).mkdir()
        build(root / name)
    trinity = root / "trinity"
    tree.save(trinity / "a.png", tree.picture(0))
    (trinity / "train.json").write_text(json.dumps({"annotations": [{"file_name": "a.png", "caption": "A liver."}]}))
    mrg = grounding.root.__wrapped__(root / "mrg")
    (root / "uni_med").mkdir()
    several = uni_med.configs(uni_med.root.__wrapped__(root / "uni_med"))
    (root / "parse").mkdir()
    png = parse_png.folder.__wrapped__(root / "parse")
    assert parse_png.prepare(png) == 0
    parse_volumes.save(root / "npz")
    shard(root / "pairs", 0)
    (root / "tar").mkdir()
    repack.write_shards(RecordDataset(own, tasks=["referring", "box", "vqa"]), root / "tar", "train", per_shard=4)
    arrow = repack.write_arrow(RecordDataset(own, tasks=["referring", "box", "vqa"]), root / "arrow" / "train")
    silent = dict(report_counts=len)
    published = benchmark_sets(root / "benchmarks")
    sets = {
        "RecordDataset": dict(path=own),
        "RecordReports": dict(path=own),
        "UniMedRecords": dict(path=own),
        "BiomedDataset": dict(root=str(root / "coco"), prompt_style="random"),
        "BiomedDataset disease": dict(root=str(root / "coco"), kind="disease"),
        "BiomedDataset region": dict(root=str(root / "coco"), kind="region"),
        "BiomedDataset painted": dict(root=str(root / "coco"), kind="region", region_style="box"),
        "RadGenomeDataset": dict(root=str(root / "radgenome")),
        "RadGenomeDataset vqa": dict(root=str(root / "radgenome"), kind="vqa", compat="reference"),
        "MedTrinityDataset": dict(root=str(trinity)),
        "BiomedVolumeDataset": dict(root=str(root / "volume"), slices=2),
        "MedicalGroundingDataset": dict(path=str(grounding.mrg(mrg)), images=str(mrg), **silent),
        "MedicalGroundingDataset reference": dict(
            path=str(grounding.mrg(mrg)), images=str(mrg), compat="reference", **silent
        ),
        "BiomedParseDataset": dict(root=str(png), split="train"),
        "ParseVolumes": dict(root=str(root / "npz")),
        "ImageTextShards": dict(shards=str(root / "pairs" / "*.tar"), index_dir=str(root / "index")),
        "ImageTextRecords": dict(path=own),
        "ShardDataset": dict(shards=str(root / "tar" / "train-*.tar")),
        "ArrowDataset": dict(path=str(arrow)),
        "AugmentedDataset": dict(dataset=dict(type="BiomedDataset", root=str(root / "coco"))),
        "HardPromptDataset": dict(dataset=dict(type="RecordDataset", path=own), mirrored=0.5, nonsense=0.3),
    }  # fmt: skip
    sets = {name: dict(type=name.split(" ")[0], **options) for name, options in sets.items()}
    sets |= published
    return sets | {f"{config['type']} {name}": config for name, config in several.items()}
