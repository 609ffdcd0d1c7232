"""Everything registered works on a device that is not the CPU, and in half precision: see `rehearsed.py`.

In a process of its own: a device that was renamed once stays for the rest of a process.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_every_family_on_another_device():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(HERE / "rehearsed.py")], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
