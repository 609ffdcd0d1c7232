"""Thirteen sources to shards: texts as the published scripts wrote them, own captions from labels, resumable."""

import csv
import hashlib
import http.server
import json
import tarfile
import threading

import pytest
from data.readers.test_shards import png
from golden_files import SMALL

from unimed.commands.common import Parser
from unimed.data.prepare import unimed_clip
from unimed.data.prepare.pairs.captions import TEMPLATES, CaptionError, Rewriter, from_templates
from unimed.data.prepare.pairs.sources import SOURCES, Pair, SourceError, findings_of
from unimed.data.prepare.pairs.writing import write_shards
from unimed.data.readers.shards import ImageTextShards
from unimed.data.wordings.captions import parse_captions

LAYOUT = json.loads((SMALL / "unimed_clip" / "webdataset_layout.json").read_text())


def table(path, head, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([head, *rows])


def images(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number * 7 % 255))


def captioned(root, file, word, stop="", report=()):
    names = [f"pic/{n}.png" for n in range(5 if not report else 2)]
    images(root, *names)
    rows = []
    for number, name in enumerate(names):
        count = 3 if number == 4 else 10
        row = [str([name]), str(["a", "b"]), str([f"{word} caption {n}{stop}" for n in range(count)])]
        rows.append(row + ([report[number]] if report else []))
    table(root / file, ["path", "labels", "captions"] + (["report"] if report else []), rows)


def make_inputs(name, root):
    """Inputs of the kind the published scripts read, such that their recorded texts should come out."""
    if name == "chexpert":
        captioned(root, "chexpert_with_captions_only_frontal_view.csv", "chexpert", ".")
    elif name == "chest_xray8":
        captioned(root, "Chest-Xray8_with_captions.csv", "chestxray8", ".")
    elif name == "radimagenet":
        captioned(root, "radimagenet_with_captions_training_set.csv", "radimagenet", ".")
    elif name == "mimic_cxr":
        file = "mimic_cxr_with_captions_and_reports_only_frontal_view.csv"
        captioned(root, file, "mimic", ".", report=("FINDINGS: clear.", ""))
    elif name == "openi":
        images(root, "0.png", "1.png")
        entries = [{"image_id": str(n), "caption": f"original {n}"} for n in range(2)]
        (root / "filter_cap.json").write_text(json.dumps({"annotations": entries}))
        refined = [[f"r{n}{letter}" for letter in "abc"] for n in range(2)]
        (root / "openai_refined_concepts.json").write_text(json.dumps({"refined_captions": refined}))
    elif name == "pmc_oa":
        images(root, "images/a.jpg", "images/b.jpg")
        lines = [{"image": f"{letter}.jpg", "caption": f"pmc caption {n} "} for n, letter in enumerate("ab")]
        (root / "pmc_oa.jsonl").write_text("\n".join(map(json.dumps, lines)))
    elif name == "quilt_1m":
        images(root, "a.jpg", "d.jpg", "nan.jpg")
        rows = [[0, "quilt a", "a.jpg", "x"], [1, "nan", "nan.jpg", "x"], [2, "c", "gone.jpg", "x"],
                [3, "quilt d", "d.jpg", "x"]]  # fmt: skip
        table(root / "quilt_1M_lookup.csv", ["", "caption", "image_path", "subset"], rows)
    elif name == "rocov2":
        images(root, "train/R1.jpg", "R2.jpg")
        table(root / "train_captions.csv", ["ID", "Caption"], [["R1", "roco a"], ["R2", " roco b\n"]])
    elif name == "llava_med_alignment":
        images(root, "images/0.jpg", "1.jpg")
        rows = [{"image": f"{n}.jpg", "conversations": [{"value": "q"}, {"value": f"answer {n}"}]} for n in range(2)]
        (root / "llava_med_alignment_500k_filtered.json").write_text(json.dumps(rows))
    elif name == "llava_med_instruct":
        images(root, "images/p0.jpg", "images/p1.jpg")
        content = {"pair_id": ["p0", "p1"], "fig_caption": ["fig 0", "fig 1"],
                   "in_text_mention": [[{"tokens": f"mention {n}a"}, {"tokens": "b"}] for n in range(2)]}  # fmt: skip
        (root / "llava_med_instruct_fig_captions.json").write_text(json.dumps(content))
    elif name == "retina_part1":
        images(root, "03_IDRID/a.png", "b.png")
        rows = [[f, str([f"ret caption {n}" for n in range(10)]), str([f"sentence {k}"])]
                for k, f in enumerate(("a.png", "b.png"))]  # fmt: skip
        table(root / "03_IDRID.csv", ["filename", "captions", "sentence_level_captions"], rows)
        table(root / "06_DEN.csv", ["image"], [["never.png"]])
    elif name == "retina_part2_den":
        images(root, "a.png", "b.png")
        rows = [["a.png", "[]", str(["60 year old", "choroidal nevus"])], ["b.png", "[]", str(["60 year old //"])]]
        table(root / "06_DEN.csv", ["image", "atributes", "categories"], rows)
    elif name == "retina_part3_mm_retinal":
        images(root, "a.png")
        table(root / "39_MM_Retinal_dataset.csv", ["image", "caption"], [["a.png", "mm caption"]])


RECORDED = {"mimic_cxr": "mimic", "chest_xray8": "chestxray8", "quilt_1m": "quilt", "retina_part2_den": "retina_part2",
            "retina_part3_mm_retinal": "retina_part3"}  # fmt: skip


def run(*words):
    parser = Parser("")
    unimed_clip.add_arguments(parser)
    return unimed_clip.run(parser.parse_args([str(word) for word in words]))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_published_layout(name, tmp_path):
    """Shards, member names and texts are those of the published scripts; image bytes are the user's own."""
    make_inputs(name, tmp_path / "in")
    expected = LAYOUT[RECORDED.get(name, name)]
    size = expected.get("tar_size", 1000)
    assert run(name, tmp_path / "in", tmp_path / "out", "--layout", "published", "--per-shard", size) == 0
    found = {}
    own = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "in").rglob("*.??g")}
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as archive:
            found[path.name] = []
            for member in archive:
                data = archive.extractfile(member).read()
                if member.name.endswith(".txt"):
                    found[path.name].append([member.name, data.decode()])
                else:
                    assert hashlib.sha256(data).hexdigest() in own
                    found[path.name].append([member.name, None])
    assert found == {shard: [[m[0], m[1]] for m in members] for shard, members in expected["shards"].items()}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_own_layout_is_read_by_the_trainer(name, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    make_inputs(name, tmp_path / "in")
    assert run(name, tmp_path / "in", tmp_path / "out") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    data = ImageTextShards(str(tmp_path / "out" / "*.tar"))
    assert len(data) == manifest["samples"] > 0
    for sample in (data[i] for i in range(len(data))):
        assert sample.images[0].shape == (7, 9)
        assert all(c.strip() and ".." not in c for c in sample.labels["captions"])
    if name == "mimic_cxr":
        assert data[0].labels["captions"][0] == "FINDINGS: clear." and data[0].labels["weights"][:2] == [1.0, 0.0]
        assert "weights" not in data[1].labels
    if name == "llava_med_instruct":
        assert data[0].labels["captions"] == ("fig 0", "mention 0a")


def test_captions_from_labels_alone(tmp_path):
    root = tmp_path / "in"
    images(root, "train/p1/v1.jpg", "train/p2/v1.jpg", "train/p2/v2.jpg")
    head = ["Path", "Frontal/Lateral", "No Finding", "Edema", "Pleural Effusion", "Pneumonia"]
    table(root / "train.csv", head, [
        ["CheXpert-v1.0-small/train/p1/v1.jpg", "Frontal", "", "1.0", "1.0", "-1.0"],
        ["CheXpert-v1.0-small/train/p2/v1.jpg", "Frontal", "1.0", "", "", ""],
        ["CheXpert-v1.0-small/train/p2/v2.jpg", "Lateral", "1.0", "", "", ""],
    ])  # fmt: skip
    pairs = list(SOURCES["chexpert"].read(root, from_templates, False))
    assert [p.label for p in pairs] == ["Edema, Pleural Effusion", "No Finding"]
    assert len(set(pairs[0].captions)) == 10
    assert all("edema and pleural effusion" in c.lower() and "pneumonia" not in c.lower() for c in pairs[0].captions)
    assert not any("{" in c for p in pairs for c in p.captions)

    nih = tmp_path / "nih"
    images(nih, "images_001/images/1.png")
    table(nih / "Data_Entry_2017_v2020.csv", ["Image Index", "Finding Labels"], [["1.png", "Mass|Nodule"]])
    (pair,) = SOURCES["chest_xray8"].read(nih, from_templates, False)
    assert pair.image.is_file() and "mass and nodule" in pair.captions[0]

    rad = tmp_path / "rad"
    images(rad, "MR/knee/acl_tear/1.png", "US/thyroid/normal/1.png")
    first, second = SOURCES["radimagenet"].read(rad, from_templates, False)
    assert first.label == "MR, knee, acl tear" and "MR of the knee showing acl tear." in first.captions
    assert "Normal thyroid on US." in second.captions

    eye = tmp_path / "eye"
    images(eye, "1.png")
    table(eye / "15_APTOS.csv", ["image", "categories"], [["1.png", "['severe diabetic retinopathy']"]])
    (pair,) = SOURCES["retina_part1"].read(eye, from_templates, False)
    assert "severe diabetic retinopathy" in pair.captions[0]


def test_reports_of_mimic(tmp_path):
    root = tmp_path / "in"
    images(root, "files/p10/p100/s5/d1.jpg", "files/p10/p100/s5/d2.jpg")
    (root / "files/p10/p100/s5.txt").write_text(
        "HISTORY: cough\n FINDINGS: The lungs\n are clear.\n IMPRESSION: Normal.\n"
    )
    table(root / "mimic-cxr-2.0.0-chexpert.csv", ["subject_id", "study_id", "No Finding"], [["100", "5", "1.0"]])
    table(root / "mimic-cxr-2.0.0-metadata.csv", ["dicom_id", "subject_id", "study_id", "ViewPosition"],
          [["d1", "100", "5", "PA"], ["d2", "100", "5", "LATERAL"]])  # fmt: skip
    (pair,) = SOURCES["mimic_cxr"].read(root, from_templates, False)
    assert pair.report == "FINDINGS: The lungs are clear. IMPRESSION: Normal."
    assert findings_of("No headings at\nall") == "No headings at all"


def pairs_of(root, count):
    images(root, *(f"{n}.png" for n in range(count)))
    return [Pair(root / f"{n}.png", (f"caption {n}",)) for n in range(count)]


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path):
    pairs = pairs_of(tmp_path / "in", 23)
    pairs[4] = Pair(tmp_path / "in" / "gone.png", ("lost",))
    (tmp_path / "in" / "9.png").write_bytes(b"no picture")
    source = SOURCES["pmc_oa"]
    whole = write_shards(source, iter(pairs), tmp_path / "whole", per_shard=5)

    def interrupted():
        yield from pairs[:13]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(source, interrupted(), tmp_path / "two", per_shard=5)
    with open(tmp_path / "two" / "progress.jsonl", "a") as stream:
        stream.write('{"half a li')
    again = write_shards(source, iter(pairs), tmp_path / "two", per_shard=5)
    assert again == whole and whole["samples"] == 21 and whole["skipped"] == 2
    assert again == write_shards(source, iter(pairs), tmp_path / "two", per_shard=5)  # nothing left to do
    skipped = [json.loads(x) for x in (tmp_path / "two" / "skipped.jsonl").read_text().splitlines()]
    assert [s["record"] for s in skipped] == [5, 10] and "not an image" in skipped[1]["reason"]


def test_what_is_refused(tmp_path, capsys):
    pairs = pairs_of(tmp_path / "in", 6)
    source = SOURCES["pmc_oa"]
    write_shards(source, iter(pairs), tmp_path / "out", per_shard=3)
    with pytest.raises(SourceError, match="other settings"):
        write_shards(source, iter(pairs), tmp_path / "out", per_shard=2)
    with open(tmp_path / "out" / "dataset-000001.tar", "ab") as stream:
        stream.write(b"x")
    with pytest.raises(SourceError, match="not the file that was written"):
        write_shards(source, iter(pairs), tmp_path / "out", per_shard=3)
    with pytest.raises(SourceError, match="more than 1; the last is record 2"):
        lost = [Pair(tmp_path / f"{n}.png", ("x",)) for n in range(3)]
        write_shards(source, iter(lost), tmp_path / "lost", per_shard=3, max_skipped=1)
    assert run("chexpert", tmp_path, tmp_path / "none") == 1
    assert "train.csv" in capsys.readouterr().err
    images(tmp_path / "den", "a.png")
    table(tmp_path / "den" / "06_DEN.csv", ["image", "categories"], [["../../etc/passwd", "['x']"]])
    assert run("retina_part2_den", tmp_path / "den", tmp_path / "none") == 1
    assert "06_DEN.csv:2: '../../etc/passwd' leads out" in capsys.readouterr().err
    table(tmp_path / "den" / "06_DEN.csv", ["image", "categories"], [["a.png", "['x', open('y')]"]])
    assert run("retina_part2_den", tmp_path / "den", tmp_path / "none") == 1
    assert "06_DEN.csv:2: not a list" in capsys.readouterr().err


@pytest.fixture()
def server():
    """An OpenAI-compatible server that answers with what the test puts into `answers`."""
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, self.headers.get("Authorization"),
                          json.loads(self.rfile.read(int(self.headers["Content-Length"])))))  # fmt: skip
            content = answers.pop(0) if answers else '```json\n["one", "two  spaces"]\n```'
            body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1", answers, asked
    running.shutdown()


def test_captions_by_an_llm_are_kept(server, tmp_path, monkeypatch):
    url, answers, asked = server
    monkeypatch.setenv("MY_KEY", "secret")
    rewriter = Rewriter(url, "m", tmp_path / "r.jsonl", "MY_KEY")
    answers.append("I cannot do that")
    assert rewriter("fundus", ["drusen"]) == ("one", "two spaces")
    assert len(asked) == 2 and asked[0][0] == "/v1/chat/completions" and asked[0][1] == "Bearer secret"
    assert "drusen" in asked[0][2]["messages"][0]["content"]
    assert Rewriter(url, "m", tmp_path / "r.jsonl")("fundus", ["drusen"]) == ("one", "two spaces")
    assert len(asked) == 2
    row = json.loads((tmp_path / "r.jsonl").read_text())
    assert row["labels"] == ["drusen"] and row["model"] == "m" and "secret" not in json.dumps(row)
    answers += ["no"] * 3
    with pytest.raises(CaptionError, match="three tries"):
        rewriter("fundus", ["other"])
    root = tmp_path / "in"
    images(root, "MR/knee/tear/1.png")
    assert run("radimagenet", root, tmp_path / "out", "--llm-url", url, "--llm-model", "m") == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["llm"] == "m"


def test_templates_are_whole():
    for kind, (some, none) in TEMPLATES.items():
        assert len(set(some)) == len(set(none)) == 10, kind
        for labels in (["Edema"], ["No Finding"], []):
            captions = from_templates(kind, labels, {"modality": "CT", "place": "chest"})
            assert len(captions) == 10 and not any("{" in c for c in captions)
    with pytest.raises(CaptionError, match="templates for 'mole'"):
        from_templates("mole", ["x"])
    with pytest.raises(CaptionError, match="modality"):
        from_templates("radiology", ["x"])


def test_published_texts_can_be_drawn_from():
    for case in LAYOUT.values():
        for members in case["shards"].values():
            for _, text in members:
                assert text is None or parse_captions(text)
