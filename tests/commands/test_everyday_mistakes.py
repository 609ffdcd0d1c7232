"""Everyday mistakes in every verb: one line that says what is wrong, an exit code, and no traceback.

Each entry is a command line and a part of the line it has to print. `{name}` in it is a path of `place`.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_volumes
from models.clip.recorded import FOLDER, converted
from PIL import Image
from small_models import tiny_model

import unimed.commands
from unimed.commands import VERBS
from unimed.commands.cli import main
from unimed.geometry import Geometry
from unimed.io.write import write_nifti
from unimed.layouts import CONVERTERS

#: What a Git LFS checkout without the files holds, and what a download behind a login gives.
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456789\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Small models, sources and broken files; the name of each is what the command lines below call it."""
    root = tmp_path_factory.mktemp("everyday")
    made = {"root": root, "nowhere": root / "nowhere", "empty": root / "empty"}
    made["empty"].mkdir()

    from unimed.models.starting import boltzformer, uni_med

    tiny_model().save_pretrained(root / "grounded")
    boltzformer.build_small(["liver"], image_size=64).save_pretrained(root / "parser")
    uni_med.build_small(
        ["is it normal? yes no"] * 4, image_size=56, vision_dim=32, vision_layers=1, hidden_dim=32, layers=1,
        vocabulary=310,
    ).save_pretrained(root / "answers")  # fmt: skip
    made |= {name: root / name for name in ("grounded", "parser", "answers")}
    made["contrastive"] = converted(root)
    made["recorded"] = FOLDER / "model" / "train_checkpoint.pt"

    rng = np.random.default_rng(0)
    grid = Geometry(np.diag([-1.0, -1, 2, 1]))
    (root / "text.csv").write_text("name,age\na,1\n")
    (root / "text.json").write_text("{}")
    made |= {"text_csv": root / "text.csv", "text_json": root / "text.json"}
    noise = rng.integers(0, 255, (24, 20), dtype=np.uint8)
    Image.fromarray(noise).save(root / "image.png")
    pages = [Image.fromarray(noise), Image.fromarray(255 - noise)]
    pages[0].save(root / "pages.tif", save_all=True, append_images=pages[1:])
    write_nifti(root / "volume.nii.gz", rng.integers(-900, 900, (16, 14, 6)).astype(np.int16), grid)
    write_nifti(root / "phases.nii.gz", rng.integers(0, 900, (16, 14, 6, 3)).astype(np.int16), grid)
    write_nifti(root / "nan.nii.gz", np.full((8, 8, 4), np.nan, np.float32), grid)
    values = rng.integers(0, 900, (12, 10, 8)).astype(np.int16)
    spaced = small_volumes.grid((1, 1, 3))
    series = small_volumes.slices(values, spaced, SeriesNumber=7)
    other = small_volumes.slices(values, spaced, SeriesNumber=8, SeriesInstanceUID="1.2.8", SeriesDescription="other")
    small_volumes.save(root / "study", [*series, *other], [f"{k:02d}" for k in range(16)])
    small_volumes.save(root / "holes", [*series[:3], *series[4:]], list("abcdefg"))
    for name in ("image.png", "pages.tif", "volume.nii.gz", "phases.nii.gz", "nan.nii.gz", "study", "holes"):
        made[name.split(".")[0]] = root / name

    texts = {
        "text.png": "no picture", "page.png": PAGE, "pointer.nii.gz": POINTER, "nothing.png": "", "text.pt": "weights?",
        "broken.json": '{"1": "liver"', "list.json": "[1, 2]", "broken.yaml": "model: [1, 2", "other.yaml": "a: 1\n",
        "uni_med.yaml": "model: {arch: uni_med, projector_type: mlp}\ndatasets: {my_own: {}}\n",
        "broken.jsonl": '{"image": "image.png", "report": "clear"}\n{"image": \n',
        "field.jsonl": '{"image": "image.png"}\n',
        "cases.jsonl": '{"case": "a"}\n', "constants.txt": "not = python (", "words.csv": "a;b\n1;2\n",
    }  # fmt: skip
    for name, text in texts.items():
        (root / name).write_text(text)
        made[name.replace(".", "_")] = root / name
    (root / "cut.png").write_bytes((root / "image.png").read_bytes()[:100])
    made["cut_png"] = root / "cut.png"
    damaged = {
        "cut_weights": lambda file: file.write_bytes(file.read_bytes()[:2000]),
        "page_weights": lambda file: file.write_text(PAGE),
        "pointer_weights": lambda file: file.write_text(POINTER), "no_weights": lambda file: file.unlink(),
    }  # fmt: skip
    for name, damage in damaged.items():
        made[name] = copied(root / "grounded", root / name)
        damage(root / name / "model.safetensors")
    for name, text in {"broken_config": '{"model_type": ', "strange_config": '{"model_type": "gpt-9"}'}.items():
        made[name] = copied(root / "grounded", root / name)
        (root / name / "config.json").write_text(text)

    made |= records(root)
    made |= configs(root)
    return SimpleNamespace(**made)


def copied(source, target):
    target.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    return target


def records(root):
    """A data folder per broken record."""
    good = {"id": "a", "patient": "p", "image": "images/a.png", "modality": "MR", "site": "brain", "source": "x",
            "task": "vqa", "question": "what is it?", "answer": "brain", "label_origin": "expert"}  # fmt: skip
    variants = {
        "not_json": "{", "a_list": "[1]", "no_image_key": {k: v for k, v in good.items() if k != "image"},
        "image_gone": good | {"image": "images/b.png"}, "outside": good | {"image": "../image.png"},
        "number": good | {"question": 3}, "empty_question": good | {"question": ""}, "regions": good | {"regions": "x"},
        "mask_gone": good
        | {"task": "referring", "answer": "<p>brain</p> [SEG].", "regions": [{"phrase": "brain", "mask": "m.png"}]},
    }  # fmt: skip
    made = {}
    for name, row in variants.items():
        folder = root / "records" / name
        (folder / "records").mkdir(parents=True)
        (folder / "images").mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "images" / "a.png")
        text = row if isinstance(row, str) else json.dumps(row)
        (folder / "records" / "train.jsonl").write_text(text + "\n")
        made[f"records_{name}"] = folder
    return made


def configs(root):
    """A config of the tiny task of the engine's tests, and what people make of it."""
    from mmengine.config import Config

    name, path = "engine_tiny", Path(__file__).parents[1] / "engine" / "tiny.py"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    good = Config(sys.modules[name].config(max_steps=1, validate_interval=0, num_workers=0)).pretty_text
    texts = {
        "config": good,
        "syntax": good + "\nx = (",
        "mine": good + "\nbatch_sise = 3\n",
        "no_test": good + "\ntest_data = None\n",
        "pretrained": good + "\ntask = dict(type='GroundingTask', model='pretrained/not_there')\n",
    }
    for name, text in texts.items():
        (root / f"{name}.py").write_text(text)
    return {f"{name}_py": root / f"{name}.py" for name in texts}


MISTAKES = {
    # -- predict
    "wrong path": ("predict {grounded} {nowhere}.png what", "nowhere.png: no such file"),
    "second path wrong": ("predict {grounded} {image} nope.png what", "nope.png: no such file"),
    "no question": ("predict {grounded} {image}", "no question"),
    "empty question": ("predict {grounded} {image} ' '", "no question"),
    "no words at all": ("predict {grounded}", "SOURCE... TEXT"),
    "empty folder as source": ("predict {grounded} {empty} what", "no image and no volume"),
    "missing model": ("predict {nowhere} {image} what", "nowhere"),
    "empty folder as model": ("predict {empty} {image} what", "empty"),
    "text file as model": ("predict {text_pt} {image} what", "text.pt"),
    "image as model": ("predict {image} {image} what", "image.png"),
    "truncated weights": ("predict {cut_weights} {image} what", "cut_weights"),
    "web page as weights": ("predict {page_weights} {image} what", "page_weights"),
    "LFS pointer as weights": ("predict {pointer_weights} {image} what", "pointer_weights"),
    "no weights": ("predict {no_weights} {image} what", "no_weights"),
    "malformed config.json": ("predict {broken_config} {image} what", "broken_config"),
    "config.json of something else": ("predict {strange_config} {image} what", "gpt-9"),
    "unknown device": ("predict {grounded} {image} what --device foo", "foo"),
    "workers without an engine": ("predict {grounded} {image} what --workers 2", "--workers is of cohorts"),
    "unknown engine": ("predict {grounded} {image} what --engine spark", "spark"),
    "no workers": ("predict {grounded} {image} what --engine local --workers 0", "at least 1"),
    "cohort of nothing": ("predict {grounded} {nowhere} what --engine local --out {root}/c1", "no such file or folder"),
    "cohort without a question": ("predict {grounded} {image} --engine local --out {root}/c2", "no question"),
    "cohort without a model": ("predict {nowhere} {image} what --engine local --out {root}/c3", "nowhere"),
    "table without files": ("predict {grounded} {text_csv} --text what --engine local --out {root}/c4", "no file"),
    "unknown kind of URL": ("predict {grounded} nope://a/b.png what --engine local --out {root}/c5", "nope"),
    "job is gone": ("predict --job {nowhere}", "nowhere"),
    "job is none": ("predict --job {text_json}", "a job names model, sources and texts"),
    "missing GPU": ("predict {grounded} {image} what --device cuda:9", "cuda:9"),
    "unknown dtype": ("predict {grounded} {image} what --dtype float33", "float33"),
    "no new tokens": ("predict {grounded} {image} what --max-new-tokens 0", "at least 1"),
    "a word for a number": ("predict {grounded} {image} what --max-new-tokens many", "invalid int value"),
    "unknown site": ("predict {grounded} {volume} what --site knee", "no CT window for site 'knee'"),
    "negative window": ("predict {grounded} {volume} what --window 40 -5", "width must be positive"),
    "half a window": ("predict {grounded} {volume} what --window 40", "expected 2 arguments"),
    "unknown plane": ("predict {grounded} {volume} what --plane axiall", "axiall"),
    "page out of range": ("predict {grounded} {pages} what --page 9", "9"),
    "several pages": ("predict {grounded} {pages} what", "2 pages"),
    "several series": ("predict {grounded} {study} what", "2 DICOM series"),
    "unknown series": ("predict {grounded} {study} what --series 99", "99"),
    "a slice is missing": ("predict {grounded} {holes} what", "a slice is missing"),
    "several phases": ("predict {grounded} {phases} what", "phase"),
    "phase out of range": ("predict {grounded} {phases} what --phase 7", "7"),
    "NaN": ("predict {grounded} {nan} what", "NaN"),
    "text file as image": ("predict {grounded} {text_png} what", "text.png"),
    "web page as image": ("predict {grounded} {page_png} what", "page.png"),
    "empty file": ("predict {grounded} {nothing_png} what", "nothing.png"),
    "cut picture": ("predict {grounded} {cut_png} what", "cut.png"),
    "LFS pointer as volume": ("predict {grounded} {pointer_nii_gz} what", "LFS"),
    "one label": ("predict {contrastive} {image} lung", "at least two"),
    "unknown task": ("predict {answers} {image} what --task segment", "segment"),
    "output is a file": ("predict {grounded} {image} what --out {broken_json}", "broken.json"),
    "output cannot be made": ("predict {grounded} {image} what --out /proc/nothing", "/proc/nothing"),
    "image without a box": ("demo --image {image}", "--image and --box belong together"),
    "demo of a missing image": ("demo --image {nowhere} --box 1 2 3 4", "nowhere"),
    # -- UniBiomed's demos
    "neither set nor image": ("demo-seg2d --model {grounded}", "--val_folder"),
    "image without text": ("demo-seg2d --model {grounded} --image {image}", "--text"),
    "missing set": ("demo-seg2d --model {grounded} --val_folder {nowhere}", "nowhere"),
    "set without a test file": ("demo-seg2d --model {grounded} --val_folder {empty}", "test.json"),
    "malformed test file": ("demo-seg2d --val_folder {root} --val_json broken.json", "broken.json"),
    "test file of another form": ("demo-seg2d --val_folder {root} --val_json list.json", "list.json"),
    "missing volume": ("demo-seg3d --model {grounded} --volume {nowhere}.nii.gz --text what", "no such file"),
    "volume without text": ("demo-seg3d --model {grounded} --volume {volume}", "--text"),
    "image as volume": ("demo-seg3d --model {grounded} --volume {image} --text what", "no volume"),
    "a set of volumes that is none": ("demo-seg3d --model {grounded} --val_folder {empty}", "meta_test.json"),
    "a model without words": ("demo-seg2d --model {parser} --image {image} --text what", "does not answer in words"),
    "no cases": ("demo-seg2d --model {grounded} --val_folder {root} --limit 0", "at least 1"),
    "a model that grounds nothing": ("demo-mrg --model {parser} --image {image} --report x", "does not ground"),
    "no data path": ("demo-disease --model {grounded}", "--data_path"),
    "disease set is gone": ("demo-disease --model {grounded} --data_path {nowhere}", "test.json"),
    "report set is gone": ("demo-grg --model {grounded} --data_path {nowhere}", "test_parse.json"),
    "question set is gone": ("demo-gvqa --model {grounded} --data_path {empty}", "test_parse.json"),
    "malformed JSON": ("demo-medtrinity --data_path {root} --json_path {broken_json}", "broken.json"),
    "region set is gone": ("demo-regioncap --model {grounded} --data_path {empty}", "test.json"),
    "unknown kind of region": ("demo-regioncap --model {grounded} --data_path {empty} --region dots", "dots"),
    "unknown kind of score": ("score reports", "reports"),
    "no predictions": ("score grg --prediction_dir {nowhere} --json_path {list_json}", "nowhere: no such folder"),
    "no truth": ("score region --prediction_dir {empty} --json_path {nowhere}.json", "nowhere.json"),
    # -- uMedGround
    "image without report": ("demo-mrg --model {grounded} --image {image}", "--report"),
    "neither image nor cases": ("demo-mrg --model {grounded}", "one of the arguments"),
    "half a line": ("demo-mrg --model {grounded} --cases {broken_jsonl}", "broken.jsonl:2"),
    "a case without report": ("demo-mrg --model {grounded} --cases {field_jsonl}", "field.jsonl:1"),
    "no calibration file": ("demo-mrg --model {grounded} --image {image} --report x --calibration gone", "gone"),
    "negative batch size": ("demo-mrg --model {grounded} --cases x --batch-size -2", "at least 1, got -2"),
    # -- clinical results
    "a phrase without letters": ("codes ...", "without letters"),
    "missing segmentation": ("check-seg {nowhere}.dcm", "nowhere.dcm"),
    "a picture as segmentation": ("check-seg {image}", "image.png"),
    "missing study": ("compare {nowhere} {volume} --labels {volume} {volume} --out {nowhere}2", "no such file"),
    "missing labels": ("compare {volume} {volume} --labels {nowhere} {volume} --out {nowhere}2", "no such file"),
    # -- BiomedParse
    "missing picture": ("demo-parse2d {nowhere}.png --model {parser} --prompts liver", "no such file"),
    "no picture in the folder": ("demo-parse2d {empty} --model {parser} --prompts liver", "no image"),
    "no prompts": ("demo-parse2d {image} --model {parser}", "--prompts"),
    "a model of another kind": ("demo-parse2d {image} --model {grounded} --prompts liver", "by prompts alone"),
    "threshold above one": ("demo-parse2d {image} --prompts liver --threshold 7", "0 to 1, got 7"),
    "prompts missing": ("demo-parse3d {volume} --model {parser}", "--prompts"),
    "prompt file malformed": ("demo-parse3d {volume} --model {parser} --prompt-file {broken_json}", "broken.json"),
    "prompt file of another form": ("demo-parse3d {volume} --model {parser} --prompt-file {list_json}", "list.json"),
    "prompt file is gone": ("demo-parse3d {volume} --model {parser} --prompt-file {nowhere}", "nowhere"),
    "unknown format": ("demo-parse3d {volume} --model {parser} --prompts liver --formats tiff", "unknown format"),
    "no slices at a time": ("demo-parse3d {volume} --model {parser} --prompts liver --slice-batch 0", "at least 1"),
    "percentiles out of order": ("demo-parse3d {volume} --model {parser} --prompts a --percentiles 90 10", "90"),
    "results are gone": ("score-volumes {nowhere} {empty}", "nowhere"),
    "truths are gone": ("score-volumes {empty} {nowhere}", ""),
    "unknown kind of target": ("list-tasks --kind film", "film"),
    # -- contrastive models
    "labels for another kind of model": ("demo-zeroshot --model {parser} --images {image} --labels a b", "not compare"),
    "a single label": ("demo-zeroshot --model {contrastive} --images {image} --labels lung", "at least two"),
    "images are gone": ("demo-zeroshot --model {contrastive} --images {nowhere} --labels a b", "nowhere: no such file"),
    "no image": ("demo-zeroshot --model {contrastive} --images {empty} --labels a b", "no image"),
    "a template without a place": (
        "demo-zeroshot --model {contrastive} --images {image} --labels a b --templates photo", "template"
    ),
    "no set": ("clip zero-shot {contrastive} --data {empty}", "no folder is named like a set"),
    "unknown set": ("clip zero-shot {contrastive} --data {empty} --sets my_set", "my_set"),
    "no classes": ("clip zero-shot {contrastive} --data {empty} --labels", "a folder per class"),
    "data is gone": ("clip probe {contrastive} --train {nowhere} --test {empty}", "nowhere"),
    "no shards": ("clip retrieval {contrastive} --shards {nowhere}/*.tar", "nowhere"),
    "no constants": ("clip import-prompts {nowhere} {root}/out.json", "nowhere"),
    "constants that are no Python": ("clip import-prompts {constants_txt} {root}/out.json", "constants.txt"),
    "overlap with nothing": ("clip overlap {nowhere} {empty}", "nowhere"),
    "average with nothing": ("clip average {nowhere} {contrastive} {root}/average", "nowhere"),
    "no verb of clip": ("clip", "VERB"),
    "speed without images": ("clip speed {contrastive} {empty}", "no image"),
    # -- calibration, conversion, new models, data
    "cases are gone": ("calibrate {nowhere}.jsonl", "nowhere.jsonl"),
    "cases without boxes": ("calibrate {cases_jsonl} --test {cases_jsonl}", "box"),
    "cases half written": ("calibrate {broken_jsonl}", "broken.jsonl"),
    "too much held out": ("calibrate {cases_jsonl} --held-out 2", "held-out"),
    "unknown layout": ("convert --from unibiomedd {text_pt} {root}/made", "did you mean 'unibiomed'"),
    "no layout": ("convert {text_pt} {root}/made", "--from"),
    "checkpoint is gone": ("convert --from unibiomed {nowhere} {root}/made", "nowhere: no such file"),
    "destination exists": ("convert --from unibiomed {text_pt} {empty}", "already there"),
    "text renamed .pt": ("convert --from unimed_clip {text_pt} {root}/made", "text.pt"),
    "malformed YAML": ("convert --from uni_med_yaml {broken_yaml} {root}/made.py", "broken.yaml"),
    "YAML of something else": ("convert --from uni_med_yaml {other_yaml} {root}/made.py", "other.yaml"),
    "unknown data set": ("convert --from uni_med_yaml {uni_med_yaml} {root}/made.py", "'my_own' is not known"),
    "no records": ("new-model {root}/made --data {empty}", "train.jsonl"),
    "half of two parts": ("new-model {root}/made --backbone {grounded}", "belong together"),
    "parts are gone": ("new-model {root}/made --backbone {nowhere} --sam2 {nowhere}", "nowhere"),
    "place is taken": ("new-model {empty} --backbone {grounded} --sam2 {text_pt}", "already there"),
    "a small model over something else": ("new-model {grounded} --data {empty}", "already there"),
    "unknown data": ("prepare mimic", "mimic"),
    "no data": ("prepare", "KIND"),
    "no processes": ("prepare repack {nowhere} {root}/packed --workers 0", "at least 1"),
    "repack nothing": ("prepare repack {nowhere} {root}/packed", "nowhere"),
    "BiomedParse folder is gone": ("prepare biomedparse {nowhere}", "nowhere"),
    "table is gone": ("prepare unimed-clip rocov2 {nowhere} {root}/shards", "nowhere"),
    "names are gone": (
        "prepare biomed-volumes --images {empty} --labels {empty} --names {nowhere} --out {root}/slices", "nowhere"
    ),
    "data folder is gone": ("check-data {nowhere}", "nowhere"),
    "pattern without a group": ("check-data {empty} --patient-pattern abc", "needs one group"),
    "pattern that is none": ("check-data {empty} --patient-pattern '('", "regular expression"),
    # -- training
    "config is gone": ("train {nowhere}.py", "nowhere.py"),
    "config that is no Python": ("train {syntax_py}", "syntax.py"),
    "YAML is gone": ("train --cfg-path {nowhere}.yaml --work-dir {root}/run", "nowhere.yaml"),
    "options without a YAML": ("train {config_py} --options run.init_lr=1", "--options belongs to --cfg-path"),
    "no source of volumes": ("demo-parse3d --model {grounded}", "give one SOURCE"),
    "unknown key": ("train {mine_py} --work-dir {root}/run", "did you mean 'batch_size'"),
    "wrong type": ("train {config_py} --work-dir {root}/run --cfg-options batch_size=many", "batch_size must be int"),
    "wrong value": ("train {config_py} --work-dir {root}/run --cfg-options precision=bf61", "did you mean 'bf16'"),
    "pretrained model is gone": ("train {pretrained_py} --work-dir {root}/run", "pretrained/not_there"),
    "no checkpoint": ("test {config_py} --checkpoint {nowhere}", "nowhere"),
    "no test data": ("test {no_test_py} --work-dir {root}/run", "no test_data"),
    "nothing to export": ("export {config_py} {nowhere} {root}/out", "nowhere"),
    "export over something": ("export {config_py} {nowhere} {empty}", "empty"),
    "no masks to export": ("export-masks {contrastive} {root}/masks", "does not point at anything"),
    "masks over something": ("export-masks {grounded} {grounded}", "grounded"),
    # -- the rest
    "nothing to serve": ("serve --model {nowhere}", "nowhere: no such file"),
    "viewer that is none": ("serve {grounded} --ohif {empty} --state {root}/state", "no index.html"),
    "Label Studio without address": ("serve {grounded} --label-studio localhost", "http or https"),
    "DICOMweb without study": ("predict {grounded} what --dicomweb http://localhost:9", "--study UID belong together"),
    "DICOMweb that is a folder": ("predict {grounded} what --dicomweb {root} --study 1.2", "http or https address"),
    "served to everybody": ("serve {grounded} --host 0.0.0.0", "give --tokens FILE"),
    "nothing for agents": ("mcp {nowhere} --root {empty}", "nowhere: no such file"),
    "agents out of the root": ("mcp {grounded} --root {empty} --out ../x", "leads out of"),
    "port for people": ("serve --model {contrastive} --port http", "invalid int value"),
    "no sample set": ("quickstart-images {grounded} {nowhere} {root}/pictures", "nowhere"),
    "no model for pictures": ("quickstart-images {nowhere} {empty} {root}/pictures", "nowhere"),
    "speed of nothing": ("speed phrases {nowhere} {image}", "nowhere"),
    "speed on nothing": ("speed phrases {grounded} {nowhere}.png", "nowhere.png"),
    "speed without an image": ("speed phrases {grounded}", "image"),
    "volumes of nothing": ("speed-volumes speed {nowhere}", "nowhere"),
    "nothing to look through": ("check-weights {nowhere}", "nowhere: no such file"),
    "no pickle to look through": ("check-weights {text_pt}", "text.pt: neither a pickle nor an archive"),
    "prune by nothing": ("cache --prune", "needs a rule"),
    "no size": ("cache --max-size large", "'large' is no size"),
    "no age": ("cache --prune --older-than soon", "'soon' is no age"),
    "runs are gone": ("compare-runs {nowhere} {empty} --metric dice", "nowhere"),
    "no metric": ("compare-runs {cases_jsonl}", "--metric"),
    "runs without a test": ("spread {empty} {nowhere}", "test/scores.jsonl"),
    "unknown benchmark": ("benchmark vqa_red {grounded}", "unknown benchmark 'vqa_red'"),
    "no data of a benchmark": ("benchmark unimed/any no: --data {nowhere}", "no such folder for unimed/any"),
    "no contestant": ("benchmark unimed/any", "name a benchmark and a model"),
    "model behind an option": ("benchmark unimed/any --data {nowhere} no:", "no such folder for unimed/any"),
    "nothing to repeat": ("benchmark --from {empty}", "no such manifest"),
    "plan without a config": ("plan {nowhere}.py", "nowhere.py"),
    "plan for no GPU": ("plan {config_py} --gpus 0", "at least 1, got 0"),
    "grid over nothing": ("grid {config_py} --out {root}/grid", "--over"),
    "grid over an unknown axis": ("grid {config_py} --over conector=a,b --out {root}/grid", "did you mean 'connector'"),
    "grid of one value": ("grid {config_py} --over connector= --out {root}/grid", "AXIS=VALUE,VALUE"),
    "card of no model": ("card {nowhere}", "no config.json"),
    "card of a run without a test": ("card {grounded} --run {nowhere}", "no test/metrics.json"),
    "a question to the doctor": ("doctor why", "unrecognized arguments: why"),
    # -- places of results that are files, or where nothing can be written
    **{
        f"{kind}: {line.split(' --')[0]}": (f"{line} {place}", message)
        for line in (
            "benchmark unimed/any no: --out", "demo-seg2d --model {nowhere} --out",
            "demo-mrg --model {nowhere} --image {image} --report x --out",
            "demo-parse2d {image} --out",
            "demo-zeroshot --model {nowhere} --images {image} --labels a b --out",
            "compare-runs {empty} --metric dice --out",
            "compare {volume} {volume} --labels {volume} {volume} --out", "grid {config_py} --over connector=a --out",
            "score-volumes {empty} {empty} --out", "demo --out", "clip overlap {empty} {empty} --out",
            "prepare sample --out", "prepare biomed-shapes --out", "prepare folder {empty} --classes --out",
            "prepare unimed-clip rocov2 {empty}", "prepare repack {empty}", "new-model", "export-masks {nowhere}",
            "quickstart-images {nowhere} {empty}", "train {config_py} --work-dir", "test {config_py} --work-dir",
            "serve {nowhere} --state", "clip average {nowhere} {nowhere}",
            "prepare biomed-volumes --images {empty} --labels {empty} --names {nowhere} --out",
            "prepare biomedparse {empty} --out",
        )
        for kind, place, message in (("file", "{text_csv}", "is a file"), ("no place", "/proc/x/y", "can be written"))
    },
    "export to a file": ("export {config_py} {nowhere} {text_csv}", "text.csv is already there"),
    "conversion to a file": ("convert --from sam {text_pt} {text_csv}", "text.csv is already there"),
    "calibration that is a folder": ("calibrate {cases_jsonl} --output {empty}", "is a folder; name the file"),
    "card that is a folder": ("card {grounded} --out {empty}", "is a folder; name the file"),
    "prompts that are a folder": ("clip import-prompts {constants_txt} {empty}", "is a folder; name the file"),
    "report that is a folder": ("convert --from sam {text_pt} {root}/made --report {empty}", "is a folder"),
    "an image to convert": ("convert --from unibiomed {image} {root}/made", "image.png: a PNG image, not a checkpoint"),
    "an image as YAML": ("convert --from uni_med_yaml {image} {root}/made.py", "a PNG image, not a configuration"),
    "unknown verb": ("predikt {grounded}", "did you mean 'predict'"),
}  # fmt: skip
BROKEN_RECORDS = {
    "not_json": "train.jsonl", "a_list": "train.jsonl", "no_image_key": "image", "image_gone": "b.png",
    "outside": "image.png", "number": "question", "empty_question": "question", "regions": "regions",
    "mask_gone": "m.png",
}  # fmt: skip
_seen: list[str] = []


@pytest.fixture(autouse=True)
def silent_clock(monkeypatch):
    """Lines of progress come by the clock, and how long a command takes is a matter of the machine."""
    from unimed import progress

    monkeypatch.setattr(progress._Reporter, "tick", lambda self, now=None: None)


def run(place, capfd, line):
    """(exit code, lines on standard error, standard output) of a command line."""
    import shlex

    words = [word.format(**vars(place)) for word in shlex.split(line)]
    capfd.readouterr()
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    captured = capfd.readouterr()
    return code, captured.err.splitlines(), captured.out


def no_traceback(lines):
    return not any("Traceback" in line or re.match(r'\s+File ".*", line', line) for line in lines)


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line(place, capfd, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    line, message = MISTAKES[name]
    code, lines, _ = run(place, capfd, line)
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 1 and no_traceback(lines), (code, lines)
    assert len(errors) == 1 and message in errors[0], lines
    usage = [line for line in lines if line.startswith(("usage:", "  "))]
    rest = [line for line in lines if line not in [*errors, *usage] and not line.startswith("warning: ")]
    assert not rest and len(errors[0].replace(str(place.root), "")) < 600, lines
    _seen.append(name)


def test_every_argument_that_says_where_results_go_is_checked():
    """A verb whose `--out`, `--output` or DESTINATION is declared without `writes=` would fail late and barely."""
    source = Path(unimed.commands.__file__).parents[1]
    files = [*source.glob("commands/*.py"), *source.glob("data/prepare/*.py")]
    declared = re.compile(
        r"""(?:add_|\b)argument\(\s*"(?:--out|--output|--report|out|destination)"(?P<rest>[^)]*)""", re.DOTALL
    )
    found = [(file.name, one["rest"]) for file in files for one in declared.finditer(file.read_text(encoding="utf-8"))]
    # The first is a place below the root of the server, the other the text of a report.
    exempt = {("mcp.py", "--out"), ("umedground.py", "--report")}
    missing = [name for name, rest in found if "writes=" not in rest]
    assert len(found) > 15 and sorted(missing) == sorted(name for name, _ in exempt), missing


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_a_broken_record_is_named(place, capfd, name):
    code, lines, out = run(place, capfd, f"check-data {{records_{name}}}")
    assert code == 1 and no_traceback(lines) and BROKEN_RECORDS[name] in out + "\n".join(lines), (out, lines)
    _seen.append(name)


@pytest.mark.parametrize("layout", CONVERTERS)
@pytest.mark.parametrize("source", ["text_pt", "empty", "contrastive", "image", "page_weights"])
def test_what_is_no_checkpoint_of_a_layout(place, capfd, tmp_path, layout, source):
    code, lines, _ = run(place, capfd, f"convert --from {layout} {{{source}}} {tmp_path / 'made'}")
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and no_traceback(lines) and str(getattr(place, source)) in errors[0], lines
    assert not (tmp_path / "made").exists()


def test_every_verb_is_there():
    typed = {line.split()[0] for line, _ in MISTAKES.values()}
    assert set(VERBS) <= typed, set(VERBS) - typed


def test_a_part_is_done_and_the_rest_is_named(place, capfd, tmp_path):
    for number, line in enumerate(
        (
            "predict {grounded} {image} {text_png} what",
            "demo-zeroshot --model {contrastive} --images {image} {cut_png} --labels a b",
        )
    ):
        code, lines, _ = run(place, capfd, f"{line} --out {tmp_path / str(number)}")
        failed = [line for line in lines if line.startswith("failed: ")]
        assert code == 2 and len(failed) == 1 and no_traceback(lines), lines
        assert len((tmp_path / str(number) / "failed.jsonl").read_text().splitlines()) == 1


def test_results_of_another_question_are_not_mixed(place, capfd, tmp_path):
    line = "predict {grounded} {image} {pages} --page 0 --max-new-tokens 2 --out " + str(tmp_path)
    assert run(place, capfd, f"{line} --text what")[0] == 0
    code, lines, _ = run(place, capfd, f"{line} --text where")
    assert code == 1 and "results of other settings" in lines[-1] and no_traceback(lines)
    assert run(place, capfd, f"{line} --text where --restart")[0] == 0


def test_an_interruption_keeps_what_is_finished(place, capfd, tmp_path, monkeypatch):
    from unimed.commands import predict

    asked, usual = [], predict._one

    def interrupted(*args):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        return usual(*args)

    monkeypatch.setattr(predict, "_one", interrupted)
    line = "predict {grounded} {image} {pages} what --page 0 --max-new-tokens 2 --out " + str(tmp_path)
    code, lines, _ = run(place, capfd, line)
    assert code == 130 and len(lines) == 1 and "1 of 2 cases are finished and kept" in lines[0]
    monkeypatch.setattr(predict, "_one", usual)
    code, _, out = run(place, capfd, line)
    assert code == 0 and "1 of them before" in out


@pytest.mark.parametrize(
    "line",
    [
        "predict {grounded} {image} what",
        "demo-parse3d {volume} --model {parser} --prompts liver",
        "demo-mrg --model {grounded} --image {image} --report clear",
        "convert --from unimed_clip {recorded} {out}/model",
        "demo-zeroshot --model {contrastive} --images {image} --labels a b",
        "demo-parse2d {image} --model {parser} --prompts liver",
    ],
)
def test_a_full_disk_is_one_line(place, capfd, monkeypatch, tmp_path, line):
    import os

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "replace", full)
    words = line.replace("{out}", str(tmp_path)) + ("" if "{out}" in line else f" --out {tmp_path}")
    code, lines, _ = run(place, capfd, words)
    assert code == 1 and no_traceback(lines), lines
    said = [line for line in lines if line.startswith(("error: ", "failed: "))]
    assert len(said) == 1 and "No space left" in said[0], lines


def test_how_many(capsys):
    """Says how many of the list gave one line in this run; the tests above fail where one does not."""
    total = len(MISTAKES) + len(BROKEN_RECORDS)
    assert total >= 60
    with capsys.disabled():
        print(f"\neveryday mistakes: {len(_seen)} of {total} one line")


@pytest.mark.parametrize("memory", ["nan", "inf", "0", "-5"])
def test_memory_that_no_gpu_has_is_refused(memory, capsys):
    from unimed.commands.plan import plan

    with pytest.raises(SystemExit) as stopped:
        plan(["configs/biomedparse/_tiny.py", f"--memory={memory}"])
    assert stopped.value.code == 1 and "above 0" in capsys.readouterr().err
