"""Every notebook runs to its end on small data, in one kernel, and is stored without outputs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
#: What stands in place of the cell of parameters.
PARAMETERS = {
    "explore_a_prediction": dict(MODEL="first", DATA="data", QUESTION="Segment the disc."),
    "fine_tune": dict(IMAGES="images", MASKS="masks", PHRASE="disc", START="first", STEPS=2),
    "evaluate_and_compare": dict(FIRST="first", SECOND="second", DATA="data", CASES=2),
    "volumes": dict(MODEL="first", VOLUME="case.nii.gz", QUESTION="Segment the disc.", SITE="abdomen"),
}


def test_notebooks_are_stored_without_outputs_and_have_parameters():
    assert {path.stem for path in NOTEBOOKS} == set(PARAMETERS)
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code), path
        (parameters,) = [cell for cell in code if "parameters" in cell["metadata"].get("tags", ())]
        names = {line.split(" = ")[0] for line in "".join(parameters["source"]).split("\n")}
        assert {part for name in names for part in name.split(", ")} == set(PARAMETERS[path.stem])
        assert "Research use only" in "".join("".join(cell["source"]) for cell in cells).replace("**", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Own images, records of them, a volume, and two tiny models."""
    from installed_package import images

    from unimed.commands.cli import main
    from unimed.geometry import Geometry
    from unimed.io.write import write_nifti
    from unimed.models.starting.grounded_small import build_tiny

    folder = tmp_path_factory.mktemp("notebooks")
    images(folder)
    words = ["--out", str(folder / "data"), "--phrase", "disc"]
    assert main(["prepare", "folder", str(folder / "images"), str(folder / "masks"), *words]) == 0
    for seed, name in enumerate(("first", "second")):
        build_tiny(["Segment the disc.", "<p> disc </p> [SEG]."], seed=seed).save_pretrained(folder / name)
    values = np.random.default_rng(0).integers(-500, 500, (4, 32, 32)).astype(np.int16)
    write_nifti(folder / "case.nii.gz", values, Geometry(np.diag([3.0, 1.0, 1.0, 1.0])))
    return folder


@pytest.fixture(scope="module")
def kernel(folder):
    """A kernel of this Python in the folder, which imports the package of this clone once."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    manager.start_kernel(cwd=str(folder), env={**os.environ, "PYTHONPATH": os.pathsep.join(places)})
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path, kernel, folder):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = "\n".join(f"{name} = {value!r}" for name, value in PARAMETERS[path.stem].items())
    NotebookClient(notebook, timeout=300, km=kernel, allow_errors=False).execute(reset_kc=True, cleanup_kc=False)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and not [one for one in outputs if one.output_type == "error"]
