"""Seconds and memory of the search for near duplicates: `python tests/data/overlap_numbers.py [IMAGES ...]`.

A process for each number of images (default: 10000 100000 1000000); half as
many, up to 500,000, are looked for; one in ten of them is there, in another file and with two bits changed.
"""

import hashlib
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent))


def measured(count: int, bits: int) -> str:
    from unimed.data.overlap import Fingerprint, Seen

    rng = np.random.default_rng(987)

    def prints(seed, number):
        for start in range(0, number, 10_000):
            looks = np.random.default_rng([seed, start]).integers(0, 2**63, 10_000, dtype=np.uint64)
            for place, look in enumerate(looks.tolist()[: number - start], start):
                digest = hashlib.sha256(b"%d %d" % (seed, place)).hexdigest()
                yield Fingerprint(f"train/patient-{place // 7:07d}/image-{place:08d}.png", digest, look)

    def asked(number):
        for one in prints(0, number):
            if rng.random() < 0.1:  # the same image in another file, with a bit or two of another value
                yield Fingerprint(one.name, hashlib.sha256(one.name.encode()).hexdigest(), one.look ^ 1 ^ (1 << 33))
            else:
                yield Fingerprint(one.name, hashlib.sha256(one.name.encode()).hexdigest(), int(rng.integers(2**63)))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    seen = Seen(prints(0, count), bits)
    filled = time.perf_counter() - began
    began, alike, number = time.perf_counter(), 0, min(count // 2, 500_000)
    alike = sum(row["kind"] == "looks alike" for row in seen.find(asked(number)))
    found = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    cells = (count, bits, f"{filled:.1f}", number, f"{found:.1f}", alike, f"{peak:.0f}", f"{peak * 2**20 / count:.0f}")
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    if "--one" in sys.argv:
        print(measured(int(sys.argv[2]), int(sys.argv[3])))
    else:
        print("| images | bits | s to fill | looked for | s to find | alike | MB at most | bytes an image |")
        print("|---|---|---|---|---|---|---|---|")
        for count in [int(word) for word in sys.argv[1:]] or [10_000, 100_000, 1_000_000]:
            for bits in (2, 4):
                done = subprocess.run(
                    [sys.executable, __file__, "--one", str(count), str(bits)], capture_output=True, text=True
                )
                print(done.stdout.strip() or done.stderr[-500:], flush=True)
