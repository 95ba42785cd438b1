"""Fails unless `compress3g --help` is instant and imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import time

LIMIT = 0.3  # seconds, or ALLOWANCE more than the bare interpreter on a loaded machine
ALLOWANCE = 0.15
HEAVY = ("torch", "numpy", "diffusers", "transformers", "faiss", "PIL")


def best(command: list[str], tries: int = 5) -> float:
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> int:
    script = sys.argv[1]
    bare, ours = best([sys.executable, "-c", "pass"]), best([script, "--help"])
    print(f"bare interpreter {bare:.3f} s, compress3g --help {ours:.3f} s")
    trace = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "compress3g.cli.main", "--help"],
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in trace.splitlines()}
    heavy = sorted(imported & set(HEAVY))
    if heavy:
        print(f"--help imports {', '.join(heavy)}")
    slow = ours > LIMIT and ours > bare + ALLOWANCE
    if slow:
        print(f"--help takes more than {LIMIT} s and more than the interpreter + {ALLOWANCE} s")
    return 1 if heavy or slow else 0


if __name__ == "__main__":
    sys.exit(main())
