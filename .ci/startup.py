"""Fails unless `compress3g --help` is instant and imports nothing heavy.

Judged by processor time: on a machine that does other things too, time on the clock says nothing.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

LIMIT = 0.2  # seconds of processor time, so that it is less than 0.3 on the clock
HEAVY = ("torch", "numpy", "diffusers", "transformers", "faiss", "PIL")


def best(command: list[str], tries: int = 5) -> tuple[float, float]:
    """The least processor time and the least time on the clock."""
    times = []
    for _ in range(tries):
        began, used = time.perf_counter(), _used()
        subprocess.run(command, check=True, capture_output=True)
        times.append((_used() - used, time.perf_counter() - began))
    return min(t[0] for t in times), min(t[1] for t in times)


def _used() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def main() -> int:
    used, clock = best([sys.argv[1], "--help"])
    print(f"compress3g --help: {used:.3f} s of processor time, {clock:.3f} s")
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
    if used > LIMIT:
        print(f"--help takes more than {LIMIT} s of processor time")
    return 1 if heavy or used > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
