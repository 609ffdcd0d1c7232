"""CPU and wall seconds of the quickstart, step by step, as a table; run it as a script in a checkout.

    python tests/quickstart_cost.py [OUT.md]

It runs the commands of `make quickstart` one by one, the environment left out. What an earlier run left is found again,
so that its steps cost nothing: the table says so.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

from unimed.files import write_text

ROOT = Path(__file__).resolve().parent.parent


def steps() -> list[str]:
    """What the target types, without the environment and the closing line."""
    printed = subprocess.run(["make", "-n", "quickstart"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in printed.splitlines() if "tools/" in line]


def cost(command: str) -> dict[str, float]:
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["bash", "-c", command], cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_s": time.perf_counter() - clock,
    }


def main() -> None:
    found = [name for name in ("data/sample", "pretrained", "work_dirs", "exports") if any((ROOT / name).glob("*/*"))]
    rows = {command: cost(command) for command in steps()}
    rows["all"] = {name: sum(row[name] for row in rows.values()) for name in ("cpu_s", "wall_s")}
    lines = ["| step | CPU s | wall s |", "|---|---|---|"]
    lines += [f"| `{command}` | {row['cpu_s']:.0f} | {row['wall_s']:.0f} |" for command, row in rows.items()]
    if found:
        lines += ["", f"Found from an earlier run: {', '.join(found)}."]
    text = "\n".join(lines)
    print(text)
    if len(sys.argv) > 1:
        write_text(Path(sys.argv[1]), text + "\n")


if __name__ == "__main__":
    main()
