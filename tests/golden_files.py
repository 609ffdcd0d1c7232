"""Where recorded reference numbers are: the small ones beside the tests, the large ones where UNIMED_GOLDEN says."""

import os
from pathlib import Path

import pytest

SMALL = Path(__file__).parent / "golden"


def large(*parts):
    """Path of a large recording; skips the test where UNIMED_GOLDEN is not set."""
    root = os.environ.get("UNIMED_GOLDEN")
    if not root:
        pytest.skip("UNIMED_GOLDEN is not set (folder with the large recordings)")
    return Path(root).joinpath(*parts)
