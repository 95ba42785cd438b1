"""A denoiser beside itself pruned, on a CPU (diffusion_speed.py) and a GPU (diffusion_gpu.py)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from _report import goal

import compress3g.diffusion as cd
from compress3g.profile import compare, count_flops

RATIOS = (0.2, 0.5)
FASTER = {0.2: 1.15, 0.5: 1.5}  # goals

Given = dict[str, Any]  # a denoiser's arguments


class Pipe:
    """As much of a pipeline as pruning looks at."""

    def __init__(self, **parts: Any) -> None:
        self.register_modules(**parts)

    def register_modules(self, **parts: Any) -> None:
        vars(self).update(parts)


def _call(model: Any, given: Given) -> Callable[[], object]:
    def again() -> object:
        with torch.inference_mode():
            return model(**given, return_dict=False)

    return again


def measured(pipe: Pipe, given: Given, ratio: float, **how: Any) -> dict[str, float]:
    """Sizes and times of a denoiser and of itself pruned; how: options of `compare`."""
    config = cd.PruneConfig(method="magnitude", ratio=ratio)
    small = copy.deepcopy(pipe)
    cd.prune(small, cd.scores_of(small, [], config), **config.how())
    models = [cd.denoiser_of(p)[1].eval() for p in (pipe, small)]
    params = [sum(p.numel() for p in m.parameters()) for m in models]
    runs = [_call(m, given) for m in models]
    macs = [count_flops(run).total / 2 for run in runs]
    time = compare(*runs, **how)
    saved = 1 - macs[1] / macs[0]
    return {
        "params": params[0], "gone": 1 - params[1] / params[0], "macs": macs[0], "saved": saved,
        "faster": 1 / time.median, "low": 1 / time.high, "high": 1 / time.low,
        "realised": (1 - time.median) / saved, "dense ms": time.a.p50,
    }  # fmt: skip


def speeds(
    denoisers: Mapping[str, Callable[[], tuple[Pipe, Given]]],
    ratios: Iterable[float] = RATIOS,
    **how: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rows by "denoiser/ratio", shown as they come, and the goals."""
    rows: dict[str, Any] = {}
    print(f"{'':20}{'ratio':>6}{'parameters':>12}{'MACs':>9}{'time':>9}{'faster':>9}  of MACs")
    for name, build in denoisers.items():
        torch.manual_seed(0)
        pipe, given = build()
        for ratio in ratios:
            row = rows[f"{name}/{ratio}"] = measured(pipe, given, ratio, **how)
            print(
                f"{name:20}{ratio:>6.0%}{-row['gone']:>12.1%}{-row['saved']:>9.1%}"
                f"{1 / row['faster'] - 1:>9.1%}{row['faster']:>9.2f}{row['realised']:>9.1%}"
                f"   ({row['low']:.2f} to {row['high']:.2f}, dense {row['dense ms']:.0f} ms)",
                flush=True,
            )
    goals = []
    for key, row in rows.items():
        ratio = float(key.rpartition("/")[2])
        goals += [
            goal(f"{key}: times as fast", row["faster"], FASTER[ratio]),
            goal(f"{key}: share of the MACs saving", row["realised"], 0.9),
        ]
    return rows, goals
