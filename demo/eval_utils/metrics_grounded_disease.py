"""The script of this name in `demo/`, where published commands look for it."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[1] / Path(__file__).name), run_name="__main__")
