import os
import sys
from pathlib import Path

# Before any import of a Hugging Face library: a test never reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Helpers of the tests are imported by name: `golden_files`, `small_models`, `published_folders`, ...
_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE / "models" / "grounded"), str(_HERE / "models" / "checkpoints")]

from hypothesis import settings  # noqa: E402

# How long an example takes is a matter of the machine.
settings.register_profile("unimed", deadline=None)
settings.load_profile("unimed")
