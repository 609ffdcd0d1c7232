"""CPU and wall seconds of a training step on a loaded machine, by number of threads; run it as a script.

As many processes as there are cores keep them busy meanwhile. `free` is what `unimed.threads` chooses.
"""

import subprocess
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unimed import threads

STEPS = 2


def main() -> None:
    cores = len(threads._affinity())
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(1)
        free = threads.free_cores()
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=500, hidden_size=256, intermediate_size=512,
                                             num_hidden_layers=4, num_attention_heads=4))  # fmt: skip
        ids = torch.randint(0, 500, (8, 128))
        print(f"{cores} cores, all busy; free chooses {free}")
        spent = {cores: [], free: []}
        for _ in range(3):
            for count, runs in spent.items():
                torch.set_num_threads(count)
                cpu, wall = time.process_time(), time.perf_counter()
                for _ in range(STEPS):
                    model(input_ids=ids, labels=ids).loss.backward()
                runs.append((time.process_time() - cpu, time.perf_counter() - wall))
        for count, runs in spent.items():
            cpu, wall = (sorted(column)[1] for column in zip(*runs, strict=True))
            print(f"{count} threads: {cpu:.2f} CPU s, {wall:.2f} s")
    finally:
        for one in busy:
            one.kill()


if __name__ == "__main__":
    main()
