"""What a user of the wheel does, in a folder that holds nothing of a clone: run by the Python that it is installed for.

    cd EMPTY_FOLDER && PYTHON installed_package.py [--train]

Prints a line per step; exit code 0 when all went well.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def package_lies_elsewhere():
    import unimed

    place = Path(unimed.__file__).resolve()
    assert ROOT not in place.parents or "site-packages" in place.parts, f"unimed is that of the clone: {place}"
    return place.parent


def verbs():
    """Every verb tells its options."""
    from unimed.commands import VERBS
    from unimed.commands.cli import main

    for verb in VERBS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            try:
                code = main([verb, "--help"])
            except SystemExit as stop:
                code = stop.code
        assert code == 0 and "usage:" in text.getvalue(), f"{verb} --help: exit code {code}"
    return len(VERBS)


def configs():
    """Every config of the wheel opens by the name it has in a clone."""
    import unimed
    from unimed.engine.config import load_config

    folder = Path(unimed.__file__).parent
    found = [p.relative_to(folder) for p in sorted(folder.glob("configs/*/*.py")) if p.parent.name != "_base_"]
    runs = [path for path in found if not path.name.startswith(("_base", "_sources"))]
    assert len(runs) > 20, f"{len(runs)} configs below {folder}"
    for path in runs:
        load_config(str(path))
    return len(runs)


def run(*words):
    from unimed.commands.cli import main

    code = main(list(map(str, words)))
    assert code == 0, f"unimed {' '.join(map(str, words))}: exit code {code}"


def images(folder, count=6):
    """Gray discs on noise with their masks, a file each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for number in range(count):
        center, radius = rng.integers(20, 44, 2), rng.integers(8, 16)
        mask = (y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2
        image = np.where(mask, 200, 60) + rng.integers(-20, 20, mask.shape)
        for name, values in (("images", image), ("masks", mask * 255)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / name / f"case{number}.png")


def own_data_to_answers():
    """Own images become records, a model is trained for two steps, tested, exported and asked."""
    from unimed.models.starting.grounded_small import build_tiny

    images(Path.cwd())
    run("prepare", "folder", "images", "masks", "--out", "data/mine", "--phrase", "disc", "--modality", "X-ray")
    run("check-data", "data/mine")
    build_tiny(["Segment the disc.", "<p> disc </p> [SEG]."]).save_pretrained("start")
    small = ["max_steps=2", "epochs=None", "batch_size=2", "task.max_new_tokens=4", "checkpoint.interval=2"]
    run("train", "--data", "data/mine", "--start", "start", "--cfg-options", *small, "val_data=None")
    run("test", "work_dirs/mine/config.py", "--checkpoint", "work_dirs/mine")
    run("export", "work_dirs/mine/config.py", "work_dirs/mine", "exports/mine")
    run("predict", "exports/mine", "images/case0.png", "Segment the disc.", "--out", "answers", "--device", "cpu")
    (answer,) = Path("answers").glob("*.json")
    assert json.loads(answer.read_text())["notice"] == "research use only"
    return answer.name


def main(arguments):
    steps = [package_lies_elsewhere, verbs, configs, *([own_data_to_answers] if "--train" in arguments else [])]
    for step in steps:
        print(f"{step.__name__}: {step()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() not in (ROOT, ROOT / "tests")]
    sys.exit(main(sys.argv[1:]))
