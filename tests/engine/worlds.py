"""Groups of gloo ranks of several sizes, one after the other, from one process: imports are paid for once."""

import importlib.util
import os
import socket
import sys
import traceback
from pathlib import Path

import torch

if "engine_tiny" not in sys.modules:
    specification = importlib.util.spec_from_file_location("engine_tiny", Path(__file__).parent / "tiny.py")
    sys.modules["engine_tiny"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(sys.modules["engine_tiny"])
tiny = sys.modules["engine_tiny"]
# Threads of OpenMP do not survive a fork.
torch.set_num_threads(1)


def run(size, work, folder, *arguments):
    """Call `work(*arguments)` on so many ranks, as torchrun would; what it prints goes to FOLDER/rank<N>.txt.

    Returns:
        exit codes, 0 where nothing was raised, negative for a signal.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(size):
        child = os.fork()
        if child == 0:
            _be(rank, size, port, folder, work, arguments)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _be(rank, size, port, folder, work, arguments):
    code = 1
    try:
        out = os.open(folder / f"rank{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        work(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
