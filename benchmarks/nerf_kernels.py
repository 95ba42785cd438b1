"""Hash grid and network: compiled kernels against the fastest torch eager form, one core.

    python benchmarks/nerf_kernels.py [--quick] [--json]

CPU seconds, both sides on the same points in the same run, taking turns; best of the rounds. A step
is what training does: look-up, then the gradient added to one that exists (ours: the optimiser
clears what it has read). Peers: six ways to write the look-up in torch, one of them with a backward
pass by hand, of which the fastest counts for each figure; the ratio to the fastest with torch's own
gradient stands beside it. For networks, `torch.nn.functional.linear`. Results are compared first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import _torch_grid
import torch
from _report import goal, parser, report

from compress3g.kernels.hash_grid import Levels, encode
from compress3g.kernels.mlp import mlp

Run = Callable[[], object]


def cpu_seconds(run: Run) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def best_of(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Best CPU seconds of each, measured in turn after one warm-up.

    Peers that take more than twice as long as the fastest in the second round leave the race.
    """
    for run in runs.values():
        run()
    best = {name: cpu_seconds(run) for name, run in runs.items()}
    limit = 2 * min(seconds for name, seconds in best.items() if name != "ours")
    racing = {name: run for name, run in runs.items() if best[name] < limit}
    for _ in range(rounds - 1):
        for name, run in racing.items():
            best[name] = min(best[name], cpu_seconds(run))
    return best


def row(runs: Mapping[str, Run], points: int, rounds: int) -> dict[str, Any]:
    """Million samples per CPU-second of all, and ours over the fastest of the others."""
    speed = {name: points / s / 1e6 for name, s in best_of(runs, rounds).items()}
    ours = speed.pop("ours")
    form = max(speed, key=speed.__getitem__)
    autograd = max(value for name, value in speed.items() if name != _torch_grid.BY_HAND)
    return {
        "ours": ours,
        "torch": speed[form],
        "ratio": ours / speed[form],
        "ratio_autograd": ours / autograd,
        "form": form,
        "forms": speed,
    }


def hash_grid(log2_size: int, points: int, rounds: int) -> dict[str, dict[str, Any]]:
    """The look-up alone, and with its gradient."""
    g = torch.Generator().manual_seed(0)
    levels = Levels.geometric(log2_size=log2_size)
    table = (torch.rand(levels.entries, 2, generator=g) - 0.5).requires_grad_()
    table.grad = torch.zeros_like(table)
    x = torch.rand(points, 3, generator=g)
    upstream = torch.randn(points, levels.width, generator=g)
    parts = _torch_grid.tables(table, levels)

    def look_up(form: _torch_grid.Form | None) -> torch.Tensor:
        if form is None:
            return encode(table, x, levels, accumulate=True)
        return _torch_grid.encode(form, parts, x, levels)

    def forward(form: _torch_grid.Form | None) -> torch.Tensor:
        with torch.no_grad():
            return look_up(form)

    def step(form: _torch_grid.Form | None) -> None:
        look_up(form).backward(upstream)

    forms = {"ours": None, **_torch_grid.FORMS}
    step(None)
    for form in _torch_grid.FORMS.values():
        torch.testing.assert_close(forward(form), forward(None), atol=1e-5, rtol=0)
        step(form)
        grad = torch.cat([part.grad for part in parts])
        torch.testing.assert_close(grad, table.grad, atol=1e-3, rtol=1e-4)
        for part in parts:
            part.grad.zero_()
    both = {"forward": forward, "step": step}
    return {
        f"hash grid 2^{log2_size}, {name}": row(
            {n: lambda run=run, f=f: run(f) for n, f in forms.items()}, points, rounds
        )
        for name, run in both.items()
    }


def network(widths: list[int], points: int, rounds: int) -> dict[str, Any]:
    """Forward and backward, gradients of weights and input."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(points, widths[0], generator=g, requires_grad=True)
    layers = [
        torch.randn(b, a, generator=g).div(a**0.5).requires_grad_()
        for a, b in itertools.pairwise(widths)
    ]
    upstream = torch.randn(points, widths[-1], generator=g)

    def linear() -> None:
        h = x
        for weight in layers[:-1]:
            h = torch.nn.functional.linear(h, weight).relu_()
        torch.nn.functional.linear(h, layers[-1]).backward(upstream)

    def ours() -> None:
        mlp(x, layers)[:, : widths[-1]].backward(upstream)

    return row({"ours": ours, "linear": linear}, points, rounds)


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    points, rounds = (1 << 14, 2) if options.quick else (1 << 17, 5)
    columns = "".join(f"{name:>10}" for name in ("ours", "torch", "ratio", "autograd"))
    print(f"{'Msamples per CPU-second':32}{columns}  torch form")
    rows: dict[str, dict[str, Any]] = {}
    for log2_size in (15, 17, 19):
        rows |= hash_grid(log2_size, points, rounds)
    rows["density network 32-64-16, step"] = network([32, 64, 16], points, rounds)
    rows["colour network 32-64-64-16, step"] = network([32, 64, 64, 16], points, rounds)
    for name, r in rows.items():
        print(
            f"{name:32}{r['ours']:>10.2f}{r['torch']:>10.2f}{r['ratio']:>9.1f}x"
            f"{r['ratio_autograd']:>9.1f}x  {r['form']}"
        )
    goals = [
        goal(
            f"hash grid 2^{size} against torch eager",
            rows[f"hash grid 2^{size}, step"]["ratio"],
            at,
        )
        for size, at in ((15, 15), (19, 30))
    ]
    report("nerf_kernels", options, seeds=[0], goals=goals, rows=rows, points=points)


if __name__ == "__main__":
    main()
