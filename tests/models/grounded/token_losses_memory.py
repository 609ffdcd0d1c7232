"""Peak memory and CPU seconds of cross-entropy in pieces and at once.

    python tests/models/grounded/token_losses_memory.py

Each way runs in a process of its own: TOKENS states of a head with VOCABULARY rows, forward and backward.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

TOKENS, WIDTH, VOCABULARY = 2048, 576, 49152


def one(most_bytes: int) -> None:
    from unimed.models.grounded.token_losses import token_losses

    torch.set_num_threads(1)
    torch.manual_seed(0)
    head, states = torch.nn.Linear(WIDTH, VOCABULARY, bias=False), torch.randn(TOKENS, WIDTH, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (TOKENS,))
    token_losses(head, states[:64], labels[:64]).mean().backward()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    token_losses(head, states, labels, most_bytes).mean().backward()
    spent = time.process_time() - began
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3, spent)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one(int(sys.argv[1]))
    else:
        found = {}
        for name, most in (("at once", 2**40), ("in pieces", 2**26)):
            told = subprocess.run([sys.executable, __file__, str(most)], capture_output=True, text=True, check=True)
            found[name] = [float(word) for word in told.stdout.split()]
            print(f"{name}: {found[name][0]:.0f} MB more at the peak, {found[name][1]:.2f} CPU s", flush=True)
        (wide, slow), (narrow, quick) = found["at once"], found["in pieces"]
        print(f"memory {narrow / wide:.2f} of it, CPU seconds {quick / slow:.2f} of it")
