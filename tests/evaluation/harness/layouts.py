"""A few drawn cases of every declared benchmark, on disk as they are downloaded: test and training part."""

import csv
import json
import pickle

import nibabel
import numpy as np
import torch
from data.readers import test_biomedparse as parse_png
from data.readers import test_unibiomed as tree
from data.readers import test_zero_shot_sets as zero_shot
from evaluation.harness import drawn
from PIL import Image

from unimed.data.readers.volume_sets import held_out
from unimed.data.readers.zero_shot_sets import catalog

PATH = "files/p10/p1000000{n}/s5041426{n}/a{n}.jpg"


def picture(path, seed=0, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_csv(path, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)


def nifti(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])), path)


def records(root):
    drawn.write(root, patients=2, test_patients=2)


def vqa_rad(root):
    rows = []
    for number in range(6):
        name, test = f"synpic{number // 2}.jpg", number >= 4 or number == 0
        picture(root / "VQA_RAD Image Folder" / name, number // 2)
        rows.append({"qid": number, "image_name": name, "question": f"Is it {number}?",
                     "answer": ("yes", "Lung")[number % 2], "answer_type": ("CLOSED", "OPEN")[number % 2],
                     "phrase_type": "test_freeform" if test else "freeform"})  # fmt: skip
    write_json(root / "VQA_RAD Dataset Public.json", rows)


def pmc_vqa(root):
    head = [
        "index",
        "Figure_path",
        "Question",
        "Answer",
        "Choice A",
        "Choice B",
        "Choice C",
        "Choice D",
        "Answer_label",
    ]
    for offset, split in enumerate(("test_clean", "train")):
        rows = [head]
        for number in range(2):
            name = f"PMC{offset}{number}_F1.jpg"
            picture(root / "figures" / name, 10 * offset + number)
            choices = [" A:CT ", " B:MRI ", " C:X-ray ", " D:PET "]
            rows.append([number, name, "Which modality?", choices[number].strip()[2:].strip(), *choices, "AB"[number]])
        write_csv(root / f"{split}.csv", rows)


def omnimedvqa(root):
    rows = []
    for number in range(2):
        picture(root / f"Images/set/{number}.png", number)
        rows.append({"dataset": "set", "question_id": f"set_{number}", "question_type": "Modality Recognition",
                     "question": "Which?", "gt_answer": ("CT", "MRI")[number], "image_path": f"Images/set/{number}.png",
                     "option_A": "CT", "option_B": "MRI", "option_C": "X-ray", "modality_type": "CT"})  # fmt: skip
    write_json(root / "QA_information/Open-access/set.json", rows)


def medxpertqa(root):
    (root / "MM").mkdir(parents=True)
    for offset, split in enumerate(("test", "dev")):
        lines = []
        for number in range(2):
            names = [f"{split}-{number}-{letter}.jpeg" for letter in "ab"[: number + 1]]
            for place, name in enumerate(names):
                picture(root / "images" / name, 100 * offset + 10 * number + place)
            lines.append(json.dumps({
                "id": f"MM-{split}-{number}", "images": names, "label": "BA"[number], "medical_task": "Diagnosis",
                "question": "What is it?\nAnswer Choices: (A) cyst (B) tumor", "options": {"A": "cyst", "B": "tumor"},
            }))  # fmt: skip
        (root / f"MM/{split}.jsonl").write_text("\n".join(lines))


def mmmu(root):
    import io

    import pyarrow
    from pyarrow import parquet

    from unimed.data.readers.vqa_sets import MmmuMedDataset

    for place, subject in enumerate(MmmuMedDataset.subjects):
        for offset, split in enumerate(("validation", "dev")):
            stream = io.BytesIO()
            Image.fromarray(np.random.default_rng(10 * place + offset).integers(0, 255, (20, 30, 3), np.uint8)).save(
                stream, "PNG"
            )
            choice = {"options": "['liver', 'lung']", "answer": "B", "question_type": "multiple-choice"}
            if place == 1:
                choice = {"options": "[]", "answer": "7", "question_type": "open"}
            row = {"id": f"{split}_{subject}_1", "question": "What does <image 1> show?", **choice,
                   "image_1": {"bytes": stream.getvalue(), "path": "1.png"}, "image_2": None}  # fmt: skip
            (root / subject).mkdir(parents=True, exist_ok=True)
            parquet.write_table(pyarrow.Table.from_pylist([row]), root / subject / f"{split}-00000-of-00001.parquet")


def slake(root):
    for offset, split in enumerate(("test", "train")):
        folder = root / "imgs" / f"xmlab{offset}"
        picture(folder / "source.jpg", offset)
        (root / f"{split}.txt").write_text(f"xmlab{offset}\n")
        rows = [{"img_name": f"xmlab{offset}/source.jpg", "question": question, "answer": answer, "q_lang": "en",
                 "answer_type": kind}
                for question, answer, kind in (("Which?", "CT", "OPEN"), ("Healthy?", "no", "CLOSED"))]  # fmt: skip
        write_json(folder / "question.json", rows)
        write_json(folder / "detection.json", [{"Liver": [12, 4, 30, 20]}, {"Left lung": [2, 4, 10, 20]}])


def path_vqa(root):
    for split in ("test", "train"):
        rows = []
        for number in range(2):
            picture(root / f"images/{split}/{split}_{number}.jpg", number + 5 * (split == "train"))
            rows.append({"img_id": f"{split}_{number}", "sent": "is it?", "label": {("yes", "no")[number]: 1},
                         "question_id": number, "answer_type": "yes/no"})  # fmt: skip
        (root / f"qas/{split}").mkdir(parents=True)
        (root / f"qas/{split}/{split}_qa.pkl").write_bytes(pickle.dumps(rows))


def sa_med(root):
    for offset, split in enumerate(("test", "train")):
        write_json(root / split / "regions/ct_00/a.json", [{"liver": [6, 4, 30, 20]}])
        picture(root / split / "images/ct_00/a.png", offset)


def mimic(root):
    parts = {"train": [], "val": [], "test": []}
    for number, split in enumerate(("train", "test", "test")):
        name = f"p10/p1000000{number}/s1/a.jpg"
        picture(root / "files" / name, number)
        parts[split].append({"image_path": [name], "report": f"The heart is normal in size. Study {number} is clear."})
    write_json(root / "annotation.json", parts)


def iu_xray(root):
    parts = {"train": [], "val": [], "test": []}
    for number, split in enumerate(("train", "test", "test")):
        name = f"CXR{number}_IM-000{number}/0.png"
        picture(root / "images" / name, number)
        parts[split].append({"id": name.split("/")[0], "image_path": [name], "report": f"Clear lungs, case {number}."})
    write_json(root / "annotation.json", parts)


def medpix(root):
    for offset, split in enumerate(("test", "train")):
        picture(root / f"images/{split}.png", offset)
        write_csv(root / f"{split}.csv", [["", "name", "context", "type"], [0, f"{split}.png", "A mass.", "caption"]])


def medmnist(name):
    def make(root):
        rng = np.random.default_rng(0)
        arrays = {}
        for split in ("train", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 255, (3, 28, 28, 3), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.array([[1], [5], [1]])
        root.mkdir(parents=True, exist_ok=True)
        np.savez(root / f"{name}_224.npz", **arrays)

    return make


def ms_cxr(root):
    images, annotations = [], []
    for number in range(1, 10):
        picture(root / PATH.format(n=number), number, (64, 80))
        images.append(
            {"id": number, "file_name": f"a{number}.jpg", "path": PATH.format(n=number), "width": 64, "height": 80}
        )
        for box in ([5, 6, 20, 30], [30, 6, 20, 30])[: 1 + number % 2]:
            annotations.append({"image_id": number, "category_id": 1, "label_text": "left effusion", "bbox": box})
    write_json(root / "MS_CXR_Local_Alignment_v1.0.0.json",
               {"images": images, "annotations": annotations, "categories":
                [{"id": 1, "name": "Pleural Effusion"}]})  # fmt: skip


def chestxray8(root):
    rows = [["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""]]
    for number in range(1, 13):
        name = f"{number:08d}_000.png"
        picture(root / "images" / name, number, (1024, 1024))
        rows.append([name, "Mass", 100, 200, 300, 300])
    write_csv(root / "BBox_List_2017.csv", rows)


def padchest_gr(root):
    table, reports = [["StudyID", "ImageID", "PatientID", "split"]], []
    for number, split in enumerate(("train", "test", "test")):
        name = f"{number}_study.png"
        picture(root / "PadChest_GR" / name, number)
        table.append([number, name, f"pat{number}", split])
        findings = [{"sentence_en": sentence, "sentence_es": "", "abnormal": True, "boxes": boxes}
                    for sentence, boxes in (("Small effusion.", [[0.1, 0.2, 0.4, 0.6]]), ("No mass.", []),
                                            ("Nodules.", [[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.7, 0.8]]))]  # fmt: skip
        reports.append({"StudyID": number, "ImageID": name, "findings": findings})
    write_csv(root / "master_table.csv", table)
    write_json(root / "grounded_reports_20240819.json", reports)


def umedground(root):
    for offset, split in enumerate(("train", "test")):
        paths = [PATH.format(n=n + 5 * offset) for n in (1, 2)]
        for number, path in enumerate(paths):
            picture(root / "images" / path, number + 5 * offset, (640, 640))
        torch.save({"image_paths": paths, "bboxes": [(64, 128, 100, 50), [(10, 20, 30, 40), (300, 20, 30, 40)]],
                    "phrases": ["heart is enlarged", ["effusion", "effusion"]],
                    "all_reports": [["The heart is enlarged."], "Effusions."]}, root
                   / f"MS_CXR_S_{split}.pth")  # fmt: skip


def biomedparse(root):
    from unimed.evaluation.benchmarks.biomedparse import MODALITIES

    for offset, split in enumerate(("train", "test")):
        for number, modality in enumerate((*MODALITIES, "MRI-FLAIR")):
            noise = np.random.default_rng(number + 50 * offset).integers(0, 255, (16, 20))
            name = f"{split}{number}_{modality}_abdomen"
            parse_png.picture(root / split / f"{name}.png", noise)
            parse_png.picture(root / f"{split}_mask/{name}_liver.png", parse_png.mask_of(2, 6 + number % 3))
    assert parse_png.prepare(root) == 0


def npz(root):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(2):
            table = np.empty((), object)
            table[()] = {"1": "liver", "4": "spleen", "instance_label": 0}
            labels = np.zeros((3, 12, 16), np.uint8)
            labels[0:2, 1:6, 1:7] = 1
            (root / split).mkdir(parents=True, exist_ok=True)
            np.savez(root / split / f"CT_{split}{number}.npz", imgs=rng.integers(0, 255, labels.shape, dtype=np.uint8),
                     gts=labels, text_prompts=table, spacing=np.ones(3))  # fmt: skip


def decathlon(root):
    names = [f"scan_{n:03d}" for n in range(60)]
    chosen = [n for n in names if held_out(n)][:2] + [n for n in names if not held_out(n)][:2]
    volume(root, chosen, "imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz")
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in chosen]
    write_json(root / "dataset.json", {"labels": {"0": "background", "1": "liver", "2": "cancer"},
                                       "modality": {"0": "CT"}, "training": entries, "test": []})  # fmt: skip


def volume(root, names, image, label, numbers=(1, 2)):
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        nifti(root / image.format(name), rng.integers(-200, 300, (12, 10, 4)).astype(np.int16))
        labels = np.zeros((12, 10, 4), np.uint8)
        labels[2 : 6 + seed % 3, 3:7, 1:3] = numbers[0]
        nifti(root / label.format(name), labels)


def totalsegmentator(root):
    from unimed.evaluation.benchmarks.masks import TOTAL

    rows = [["image_id", "age", "split"]]
    for seed, split in enumerate(("train", "test", "test")):
        name = f"s000{seed}"
        nifti(root / name / "ct.nii.gz",
              np.random.default_rng(seed).integers(-200, 300, (12, 10, 4)).astype(np.int16))  # fmt: skip
        for place, structure in enumerate(one[0] for one in TOTAL.values() if one):
            mask = np.zeros((12, 10, 4), np.uint8)
            mask[place : place + 4, 2:7, 1:3] = 1
            nifti(root / f"{name}/segmentations/{structure}.nii.gz", mask)
        rows.append([name, 50, split])
    write_csv(root / "meta.csv", rows, ";")


def rexgroundingct(root):
    parts = {"train": ["train_1_a_1"], "val": [], "test": ["train_2_a_1", "train_3_a_1"]}
    content = {}
    for split, names in parts.items():
        content[split] = [{"name": f"{n}.nii.gz", "findings": {"0": "A nodule.", "1": "An effusion."}} for n in names]
        for seed, name in enumerate(names):
            rng = np.random.default_rng(seed + 7 * (split == "test"))
            nifti(root / f"images/{name}.nii.gz", rng.integers(-900, 300, (12, 10, 4)).astype(np.int16))
            masks = np.zeros((2, 12, 10, 4), np.uint8)
            masks[0, 2:6, 3:7, 1:3] = masks[1, 7:9, 3:7, 1:3] = 1
            nifti(root / f"segmentations/{name}.nii.gz", masks)
    write_json(root / "dataset.json", content)


def coco(root):
    root.mkdir(parents=True, exist_ok=True)
    tree.coco(root)
    tree.coco(root, "test", seed=10)


def seg3d(root):
    root.mkdir(parents=True, exist_ok=True)
    tree.volume(root)
    for path in (root / "meta_train.json", root / "train", root / "train_mask"):
        if path.is_file():
            content = json.loads(path.read_text())
            write_json(root / "meta_test.json", content)
        elif path.is_dir():
            import shutil

            shutil.copytree(path, root / path.name.replace("train", "test"))


def radgenome(root):
    root.mkdir(parents=True, exist_ok=True)
    tree.radgenome(root)
    import shutil

    for path in list(root.iterdir()):
        target = root / path.name.replace("train", "test")
        if target != path:
            shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)


def medtrinity(root):
    for offset, split in enumerate(("train", "test")):
        tree.save(root / split / f"{split}.png", tree.picture(offset))
        write_json(root / f"{split}.json", {"annotations": [{"file_name": f"{split}.png", "caption": "A liver."}]})


def zero_shot_set(name):
    return lambda root: zero_shot.make_set(catalog()[name], root)


#: Benchmark (or what its name begins with) -> function that writes it into a folder.
MAKERS = {
    "unimed/": records, "vqa/vqa_rad": vqa_rad, "vqa/pmc_vqa": pmc_vqa, "vqa/omnimedvqa": omnimedvqa,
    "vqa/medxpertqa_mm": medxpertqa, "vqa/mmmu_med": mmmu, "boxes/ms_cxr": ms_cxr, "boxes/chestxray8": chestxray8,
    "boxes/padchest_gr": padchest_gr, "masks/rexgroundingct": rexgroundingct, "masks/msd_": decathlon,
    "masks/totalsegmentator": totalsegmentator, "reports/iu_xray": iu_xray, "reports/mimic_cxr": mimic,
    "biomedparse/images": biomedparse,
    "biomedparse/volumes": npz, "cvpr25/text_3d": npz, "umedground/": umedground, "uni_med/slakevqa_en": slake,
    "uni_med/ref_slake": slake, "uni_med/invref_slake": slake, "uni_med/path_vqa": path_vqa,
    "uni_med/ref_sa_med": sa_med, "uni_med/invref_sa_med": sa_med, "uni_med/mimic_caption": mimic,
    "uni_med/medpix_single": medpix, "uni_med/medmnist_2d_derma": medmnist("dermamnist"),
    "uni_med/medmnist_2d_organs": medmnist("organsmnist"), "unibiomed/seg2d": coco, "unibiomed/disease": coco,
    "unibiomed/region": coco, "unibiomed/seg3d": seg3d, "unibiomed/grg": radgenome, "unibiomed/gvqa": radgenome,
    "unibiomed/medtrinity": medtrinity,
    **{f"zero_shot/{name}": zero_shot_set(name) for name in catalog()},
}  # fmt: skip


def maker_of(name):
    found = [prefix for prefix in MAKERS if name.startswith(prefix)]
    return MAKERS[max(found, key=len)] if found else None
