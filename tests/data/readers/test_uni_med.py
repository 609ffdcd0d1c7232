"""The twelve data sets of Uni-Med, written to disk as they are published, read, and broken in one place at a time."""

import json
import pickle

import numpy as np
import pytest
from golden_files import recording
from PIL import Image

from unimed.data.readers import uni_med
from unimed.data.readers.uni_med import FieldError
from unimed.models.dialects import build_dialect
from unimed.models.dialects.pools import TemplateError
from unimed.models.dialects.uni_med import POOLS, read_pools
from unimed.registry import DATASETS
from unimed.structures import Intent


def fill(pool, subject="", training=True, path=None):
    return build_dialect("uni_med").wording(pool, subject, Intent(pool, drawn=training, pools=path))


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def picture(path, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """All data sets in one folder."""
    folder = tmp_path / "MedQA" / "questions" / "US"
    folder.mkdir(parents=True)
    long = " ".join(f"w{i}" for i in range(80))
    (folder / "train.jsonl").write_text(json.dumps({"question": long, "answer": "Virus"}) + "\n")
    write_json(tmp_path / "PubMedQA" / "train_set.json", {"7": {"QUESTION": "Is  it?", "final_decision": "maybe"}})
    (tmp_path / "Slake").mkdir()
    (tmp_path / "Slake" / "train.txt").write_text("x1\n")
    question = {"img_name": "x1/source.jpg", "question": "What?", "answer": "CT", "q_lang": "en", "answer_type": "OPEN"}
    write_json(tmp_path / "Slake/imgs/x1/question.json", [question, question | {"q_lang": "zh"}])
    write_json(tmp_path / "Slake/imgs/x1/detection.json", [{"Liver": [12, 4, 30, 20]}])
    picture(tmp_path / "Slake/imgs/x1/source.jpg")
    record = {"img_id": "train_1", "sent": "is it?", "label": {"yes": 1}, "question_id": 5, "answer_type": "yes/no"}
    (tmp_path / "path.pkl").write_bytes(pickle.dumps([record]))
    picture(tmp_path / "path" / "train" / "train_1.jpg")
    write_json(tmp_path / "regions" / "ct_00" / "a.json", [{"liver": [6, 4, 30, 20]}])
    picture(tmp_path / "sa" / "ct_00" / "a.png")
    reports = [{"image_path": ["p/a.jpg", "p/b.jpg"], "report": long}, {"image_path": ["gone.jpg"], "report": "x"}]
    write_json(tmp_path / "mimic.json", {"train": reports, "val": [], "test": []})
    picture(tmp_path / "mimic" / "files" / "p" / "a.jpg")
    (tmp_path / "mpx.csv").write_text(
        ",name,context,type\n0,a.png,A mass.,caption\n1,b.png,,caption\n"
        "2,a.png,CT,modality\n3,a.png;b.png,Two.,caption\n"
    )
    picture(tmp_path / "mpx" / "a.png")
    picture(tmp_path / "mpx" / "b.png")
    images = np.zeros((2, 28, 28), np.uint8)
    np.savez(tmp_path / "organsmnist_224.npz", train_images=images, train_labels=np.array([[1], [8]]))
    return tmp_path


def configs(root):
    return {
        "medqa_en": dict(type="MedQADataset", root=root / "MedQA"),
        "pubmedqa": dict(type="PubMedQADataset", root=root / "PubMedQA"),
        "slakevqa_en": dict(type="SlakeVQADataset", root=root / "Slake"),
        "path_vqa": dict(type="PathVQADataset", annotations=root / "path.pkl", image_root=root / "path"),
        "ref_slake": dict(type="SlakeBoxDataset", root=root / "Slake"),
        "invref_slake": dict(type="SlakeBoxDataset", root=root / "Slake", task="identify"),
        "ref_sa_med": dict(type="SAMedBoxDataset", region_dir=root / "regions", image_dir=root / "sa"),
        "invref_sa_med": dict(
            type="SAMedBoxDataset", region_dir=root / "regions", image_dir=root / "sa", task="identify"
        ),
        "mimic_caption": dict(type="MimicReportDataset", annotations=root / "mimic.json", image_root=root / "mimic"),
        "medpix_single": dict(type="MedPixDataset", table=root / "mpx.csv", image_dir=root / "mpx"),
        "medpix_multi": dict(type="MedPixDataset", table=root / "mpx.csv", image_dir=root / "mpx", separator=";"),
        "medmnist_2d_organs": dict(type="MedMnistDataset", path=root / "organsmnist_224.npz"),
    }


def test_all_twelve(root):
    answers = {}
    for name, config in configs(root).items():
        dataset = DATASETS.build(config | {"template": 0})
        sample = dataset[len(dataset) - 1]
        assert sample.labels["benchmark"] == name
        if sample.labels["task"] == "refer":
            assert sample.conversation[1][1] == "[BOX]"
        sample = build_dialect("uni_med").write(sample)
        answers[name] = (sample.labels["task"], len(sample.images), sample.conversation[1][1])
    long = " ".join(f"w{i}" for i in range(80))
    assert answers == {
        "medqa_en": ("qa", 0, "Virus"),
        "pubmedqa": ("qa", 0, "maybe"),
        "slakevqa_en": ("vqa", 1, "CT"),
        "path_vqa": ("vqa", 1, "yes"),
        "ref_slake": ("refer", 1, "{<20><10><70><60>}"),
        "invref_slake": ("identify", 1, "Liver"),
        "ref_sa_med": ("refer", 1, "{<10><10><60><60>}"),
        "invref_sa_med": ("identify", 1, "liver"),
        "mimic_caption": ("caption", 1, long),
        "medpix_single": ("caption", 1, "A mass."),
        "medpix_multi": ("caption", 2, "Two."),
        "medmnist_2d_organs": ("cls", 1, "right lung"),
    }


def test_texts_are_cut_only_where_the_reference_is_asked_for(root):
    for name in ("medqa_en", "mimic_caption"):
        whole = DATASETS.build(configs(root)[name] | {"template": 0})[0]
        cut = DATASETS.build(configs(root)[name] | {"template": 0, "compat": "reference"})[0]
        turn = 0 if name == "medqa_en" else 1
        assert len(whole.conversation[turn][1].split()) == 80
        assert len(cut.conversation[turn][1].split()) == (49 if name == "medqa_en" else 50)
    assert DATASETS.build(configs(root)["mimic_caption"]).missing == 1


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("slakevqa_en", "Slake/imgs/x1/question.json", "answer"),
        ("path_vqa", "path.pkl", "sent"),
        ("mimic_caption", "mimic.json", "report"),
        ("pubmedqa", "PubMedQA/train_set.json", "final_decision"),
        ("medqa_en", "MedQA/questions/US/train.jsonl", "question"),
    ],
)
def test_a_missing_field_is_named_with_file_and_record(root, name, file, key):
    path = root / file
    if file.endswith("pkl"):
        records = pickle.loads(path.read_bytes())
        del records[0][key]
        path.write_bytes(pickle.dumps(records))
    else:
        path.write_text(path.read_text().replace(f'"{key}"', '"other"'))
    with pytest.raises(FieldError, match=rf"{path.name}: .*record \w+: field '{key}' is missing"):
        DATASETS.build(configs(root)[name])


def test_broken_files_are_named(root):
    write_json(root / "Slake/imgs/x1/detection.json", [{"Liver": [1, 2, 0, 4]}])
    with pytest.raises(FieldError, match=r"detection.json: record 0: field 'Liver' must be"):
        DATASETS.build(configs(root)["ref_slake"])
    (root / "path.pkl").write_bytes(pickle.dumps([np.zeros(1)]))
    with pytest.raises(FieldError, match=r"path.pkl: names .*convert it to JSON"):
        DATASETS.build(configs(root)["path_vqa"])
    np.savez(root / "organsmnist_224.npz", train_images=np.zeros((1, 28, 28), np.uint8), train_labels=np.array([[11]]))
    with pytest.raises(FieldError, match="record 0: field 'train_labels' is 11, there are 11 classes"):
        DATASETS.build(configs(root)["medmnist_2d_organs"])
    (root / "sa" / "ct_00" / "a.png").unlink()
    with pytest.raises(FieldError, match="a.png"):
        DATASETS.build(configs(root)["ref_sa_med"])[0]


def test_templates(tmp_path):
    assert {name: len(POOLS[name]) for name in ("vqa", "refer", "identify", "caption", "mimic_caption")} == {
        "vqa": 2, "refer": 7, "identify": 7, "caption": 10, "mimic_caption": 5,
    }  # fmt: skip
    assert len({fill("refer", "liver") for _ in range(200)}) == 7
    assert fill("refer", "liver", training=False) == "Where does liver lie?"
    own = write_json(tmp_path / "own.json", {"refer": ["box of {}"]})
    assert fill("refer", "liver", path=str(own)) == "box of liver"
    with pytest.raises(TemplateError, match="pool 'refer', entry 0"):
        read_pools(str(write_json(tmp_path / "bad.json", {"refer": ["box"]})))
    with pytest.raises(TemplateError, match="unknown pool 'rec'"):
        read_pools(str(write_json(tmp_path / "bad2.json", {"rec": ["box {}"]})))


def test_recorded_prompts_with_the_wording_of_the_reference(tmp_path):
    """Instructions as recorded: a pool made of the recorded sentence, the record, and the processor's layout."""
    from models.uni_med.recorded import instruction, processor

    recorded = json.loads(recording("uni_med", "prompts", "train_prompts.json").read_text())["samples"]
    reader = processor("reference")
    checked = 0
    for entry in recorded:
        task, raw = entry["task"], entry["raw"]
        if task == "qa":
            question = uni_med.clean(raw.get("question") or raw["QUESTION"])
            whole = uni_med.clean(entry["instruction_input"].removeprefix("[qa] "))
            words = f"[qa] {question}" if entry["template_index"] == 0 else entry["instruction_input"]
            assert " ".join(words.split(" ")[:50]) == instruction(reader, "qa", whole, 0)
        elif task in ("vqa", "refer", "identify"):
            subject = uni_med.clean(str(raw.get("question") or raw.get("sent") or raw.get("object")), 50)
            subject = entry["instruction_input"].split("] ", 1)[1].strip() if task == "identify" else subject
            body = entry["instruction_input"].split("] ", 1)[1][:-1]
            assert subject in body
            own = write_json(tmp_path / f"{checked}.json", {task: [body.replace(subject, "{}")]})
            text = fill(task, subject, path=str(own))
            assert instruction(reader, task, text, 1) == entry["instruction_input"]
        checked += 1
    assert checked == len(recorded)
