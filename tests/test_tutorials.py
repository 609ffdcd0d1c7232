"""Tutorials: their commands and programs, in their order, on tiny data."""

import re
import shlex
import shutil
import subprocess

import nibabel
import numpy as np
import pytest
from page_commands import ROOT, lines, run
from PIL import Image

PAGES = sorted(path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md"))
SHORT = [
    "--cfg-options",
    "device=cpu",
    "max_steps=1",
    "batch_size=1",
    "num_workers=0",
    "validate_samples=1",
    "log.curves=False",
]
ASKED = ["--limit", "1", "--max-new-tokens", "2", "--resamples", "5", "--worst", "0", "--no-frame-test"]
QUICK = {
    "train": SHORT,
    "test": ["--cfg-options", "device=cpu", "task.max_new_tokens=2", "task.honesty_samples=1"],
    "predict": ["--max-new-tokens", "4"],
    "benchmark": ASKED, "compare-runs": ["--resamples", "5"],
}  # fmt: skip


def play(name, quick=QUICK, before=lambda line: None, curl=None):
    """Run the blocks of a tutorial in their order; the number of lines and programs, and the names programs left."""
    text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    ran, names = 0, {}
    for kind, block in re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(compile(block, name, "exec"), names)  # noqa: S102
            ran += 1
            continue
        for line in lines(f"```bash\n{block}```\n"):
            before(line)
            if line.startswith("curl "):
                curl(line)
            else:
                # The doctor's exit code is about this machine.
                assert run(line, quick) == 0 or line == "unimed doctor", line
            ran += 1
    return ran, names


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.fixture(scope="session")
def speaker(tmp_path_factory):
    """A model of a few thousand weights that points in every answer; it is only read."""
    from published_folders import publish

    from unimed.models.checkpoints import unibiomed

    home = tmp_path_factory.mktemp("speaker")
    publish(home / "published", say=["[SEG]", ".", "<|im_end|>"])
    unibiomed.convert(home / "published", home / "speaker")
    return home / "speaker"


def flat_images(here):
    """`images/` and `masks/`: two images each of four patients."""
    for folder in ("images", "masks"):
        (here / folder).mkdir()
    for number in range(8):
        values = np.random.default_rng(number).integers(0, 90, (48, 48), dtype=np.uint8)
        mask = np.zeros((48, 48), np.uint8)
        mask[10 + number : 30, 12:34] = 255
        values[mask > 0] += 100
        for folder, array in (("images", values), ("masks", mask)):
            Image.fromarray(array).save(here / folder / f"P{number // 2}_{number % 2 + 1}.png")


def started(model):
    return QUICK | {"train": ["--start", str(model), *SHORT]}


def test_first_hour(here, monkeypatch, capsys):
    from commands import test_demo

    test_demo.packaged.__wrapped__(here, monkeypatch)
    small = ["--hidden-dim", "32", "--layers", "1"]
    few = "dict(type='RecordDataset',path='data/sample',split='{}',tasks=['referring'],limit=1)"
    trained = ["val_data=None", f"train_data={few.format('train')}", f"test_data={few.format('test')}"]
    quick = QUICK | {
        "new-model": small,
        "train": [*SHORT, *trained],
        "test": [*QUICK["test"], *trained],
        "demo": ["--device", "cpu"],
        "sample": ["--blocks", "nuclei"],
    }
    ran, names = play("first_hour", quick)
    assert ran == 9 and names["prediction"].text is not None and (here / "first" / "nuclei.html").is_file()


def test_own_2d_data(here, speaker):
    flat_images(here)
    ran, names = play("own_2d_data", started(speaker))
    assert ran == 7 and names["prediction"].regions[0].mask.shape == (48, 48)
    assert len(list((here / "out").iterdir())) == 2


def test_own_3d_data(here, speaker):
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (here / folder).mkdir()
    for number in range(4):
        labels = np.zeros((24, 24, 6), np.uint8)
        labels[4 : 12 + number, 6:16, 1:5], labels[16:20, 6:12, 2:4] = 1, 2
        values = (rng.normal(0, 30, labels.shape) + 100 * labels).astype(np.int16)
        for name, array in ((f"imagesTr/a{number}_0000", values), (f"labelsTr/a{number}", labels)):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1, 2, 1])), here / f"{name}.nii.gz")
    ran, names = play("own_3d_data", started(speaker))
    assert ran == 7 and names["prediction"].regions[0].mask.shape == (24, 24, 6)
    assert list((here / "out").glob("*.nii.gz")) and (here / "runs" / "liver" / "run.html").is_file()


def test_new_backbone(here):
    from evaluation.harness import drawn
    from native_models import tiny_config, tiny_processor
    from transformers import AutoModelForImageTextToText

    processor, folder = tiny_processor("qwen3_vl"), here / "pretrained" / "Qwen3-VL"
    config = tiny_config("qwen3_vl", processor.tokenizer)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    drawn.write(here / "data" / "mine", patients=2, test_patients=2)
    ran, names = play("new_backbone", QUICK | {"benchmark": [*ASKED, "--no-leak-check", "--no-baselines"]})
    assert ran == 6 and type(names["model"].mask_head).__name__ == "LightMaskDecoder"


def test_calibrate(here, speaker):
    from evaluation.harness import drawn
    from metrics.test_conformal_regions import rows

    from unimed.evaluation.tables import write_cases

    drawn.write(here / "data" / "mine", patients=1, test_patients=1)
    (here / "data/mine/records/val.jsonl").write_text((here / "data/mine/records/test.jsonl").read_text())
    flat_images(here)
    assert run("unimed train --data data/mine", started(speaker)) == 0
    shutil.copytree(speaker, here / "exports" / "mine")

    def scored(line):
        """A model of no training has nothing to calibrate: drawn scores take the place of its own."""
        if line.startswith("unimed calibrate"):
            for seed, place in enumerate(("val", "test")):
                file = here / "work_dirs" / "mine" / place / "scores.jsonl"
                assert file.is_file(), f"the page names {file}"
                file.unlink()
                write_cases(file, rows(40, seed=seed))

    ran, _ = play("calibrate", before=scored)
    assert ran == 4 and (here / "calibration.json").is_file()


def test_dicom_to_seg(here, speaker):
    pytest.importorskip("highdicom")
    from clinical import ct_series

    shutil.copytree(speaker, here / "exports" / "mine")
    ct_series(here / "ct_series", shape=(24, 20, 5))
    ran, names = play("dicom_to_seg")
    assert ran == 4 and len(names["regions"]) == 1


def test_serve_to_ohif(here, speaker, monkeypatch):
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    from clinical import ct_series
    from serve.serving import application, served
    from small_models import tiny_model

    from unimed.commands import serve
    from unimed.serve.doors import clinic_doors

    ct_series(here / "dicom" / "study")
    asked = []
    monkeypatch.setattr(serve, "guarded", lambda work, args: asked.append(args) or 0)
    with served(application(here, tiny_model(), doors=clinic_doors(), tokens=False, root=here / "dicom")) as server:

        def curl(line):
            line = line.replace("http://127.0.0.1:8000", server.url)
            done = subprocess.run(
                [*shlex.split(line), "--fail-with-body", "-sS"], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0 and done.stdout, (line, done)

        ran, _ = play("serve_to_ohif", curl=curl)
    assert ran == 5 and asked[0].labels == ["liver", "spleen"] and str(asked[0].root) == "dicom"


def test_every_tutorial_has_a_test():
    assert {f"test_{name}" for name in PAGES} <= set(globals())
