import os
import sys
from pathlib import Path

# Before any import of a Hugging Face library: a test never reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
