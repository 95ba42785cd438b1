"""Hash grid and network, forward and backward: compiled kernels against torch eager, one core.

    python benchmarks/nerf_kernels.py [--quick] [--json]

CPU seconds, both sides on the same points in the same run, the two alternating; best of the rounds.
Peers: the same look-up written with torch gathers (our reference backend), and torch.nn layers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
from _report import goal, parser, report

from compress3g.kernels.hash_grid import Levels, encode
from compress3g.kernels.mlp import mlp
from compress3g.kernels.registry import use


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def paired(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int
) -> tuple[float, float]:
    """Best CPU seconds of both, measured in turn after one warm-up."""
    ours()
    peer()
    times = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(rounds)]
    return min(t[0] for t in times), min(t[1] for t in times)


def hash_grid(log2_size: int, points: int, rounds: int) -> dict[str, float]:
    g = torch.Generator().manual_seed(0)
    levels = Levels.geometric(log2_size=log2_size)
    table = (torch.rand(levels.entries, 2, generator=g) - 0.5).requires_grad_()
    x = torch.rand(points, 3, generator=g)
    upstream = torch.randn(points, levels.width, generator=g)

    def step(backend: str) -> None:
        with use(hash_grid=backend):
            encode(table, x, levels).backward(upstream)
        table.grad = None

    ours, peer = paired(lambda: step("cpu"), lambda: step("reference"), rounds)
    return {"ours": points / ours / 1e6, "torch": points / peer / 1e6, "ratio": peer / ours}


def network(widths: list[int], points: int, rounds: int) -> dict[str, float]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(points, widths[0], generator=g, requires_grad=True)
    layers = [
        torch.randn(b, a, generator=g).div(a**0.5).requires_grad_()
        for a, b in itertools.pairwise(widths)
    ]
    upstream = torch.randn(points, widths[-1], generator=g)

    def peer() -> None:
        h = x
        for weight in layers[:-1]:
            h = torch.nn.functional.linear(h, weight).relu()
        torch.nn.functional.linear(h, layers[-1]).backward(upstream)

    def ours() -> None:
        mlp(x, layers)[:, : widths[-1]].backward(upstream)

    mine, theirs = paired(ours, peer, rounds)
    return {"ours": points / mine / 1e6, "torch": points / theirs / 1e6, "ratio": theirs / mine}


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    points, rounds = (1 << 15, 3) if options.quick else (1 << 17, 5)
    print(f"{'Msamples per CPU-second':34}{'ours':>9}{'torch':>9}{'ratio':>9}")
    rows = {}
    for log2_size in (15, 17, 19):
        rows[f"hash grid 2^{log2_size}, f+b"] = hash_grid(log2_size, points, rounds)
    rows["density network 32-64-16, f+b"] = network([32, 64, 16], points, rounds)
    rows["colour network 32-64-64-16, f+b"] = network([32, 64, 64, 16], points, rounds)
    for name, row in rows.items():
        print(f"{name:34}{row['ours']:>9.2f}{row['torch']:>9.2f}{row['ratio']:>8.1f}x")
    goals = [
        goal("hash grid at 2^15 against torch eager", rows["hash grid 2^15, f+b"]["ratio"], 15),
        goal("hash grid at 2^19 against torch eager", rows["hash grid 2^19, f+b"]["ratio"], 30),
    ]
    report("nerf_kernels", options, seeds=[0], goals=goals, rows=rows, points=points)


if __name__ == "__main__":
    main()
