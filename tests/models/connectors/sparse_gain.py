"""Two of eight experts against all eight, in CPU seconds: `python tests/models/connectors/sparse_gain.py`."""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from unimed.models.connectors import build_connector  # noqa: E402


def measure(method: str, width: int) -> tuple[float, float]:
    """(time of all experts / time of the chosen two, largest difference of the outputs)."""
    torch.manual_seed(0)
    options = dict(projector_type="moe_mlp", num_experts=8, router_type="sparse", sparse_topk=2, resample_method="none")
    connector = build_connector(options | dict(router_method=method, task_token_c=256), width, width)
    vision = torch.randn(2, 64, width)
    spent, outputs = {False: [], True: []}, {}
    with torch.inference_mode():
        for _ in range(7):
            for everything in (False, True):
                connector.compute_all = everything
                began = time.process_time()
                outputs[everything] = connector(vision, "vqa").tokens
                spent[everything].append(time.process_time() - began)
    ratio = statistics.median(spent[True]) / statistics.median(spent[False])
    return ratio, (outputs[True] - outputs[False]).abs().max().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method, width in (("router_task", 2048), ("router_task_token", 2048), ("router_task_token", 1024)):
        ratio, difference = measure(method, width)
        print(f"{method}, width {width}: {ratio:.2f} times faster, outputs differ by at most {difference:.1e}")
