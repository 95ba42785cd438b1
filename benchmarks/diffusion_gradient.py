"""Gradients of the last latent: time-step checkpointing against plain backpropagation, in float64.

    python benchmarks/diffusion_gradient.py [--quick] [--json]

Tiny random denoisers (U-Net of SDXL, SD3, Flux) with guidance 3 under every scheduler of diffusers
that can drive them, 6 inference steps (solvers of higher order call the denoiser more often). The
gradient of a random projection of the last latent, at the first latent and at a gate on every head,
neuron and channel group: the largest difference over the largest entry, over all of these, without
kept steps and with two. Beside it the same without the gradient through what the scheduler
remembers, which is what checkpointing the latents alone gives.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import torch
from _report import goal, parser, report
from torch import Tensor

from compress3g.core import gated
from compress3g.diffusion import rollout, units_of

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.diffusion.denoisers import (
    DENOISERS,
    SCHEDULERS,
    denoiser,
    first_latent,
    guided_step,
    noise,
    scheduler,
)

STEPS = 6


def gradients(name: str, kind: str, how: str) -> list[Tensor]:
    """At the first latent and at all gates."""
    model = denoiser(name)
    units = units_of(model)
    g = torch.Generator().manual_seed(5)
    gates = {
        u.name: (0.5 + torch.rand(u.size, generator=g, dtype=torch.float64)).requires_grad_()
        for u in units
    }
    torch.manual_seed(0)  # of schedulers that add noise
    schedule = scheduler(kind, STEPS)
    step, z = guided_step(name, model, schedule, kind), first_latent(name).requires_grad_()
    count, inputs = len(schedule.timesteps), list(gates.values())
    with gated(model, units, gates):
        if how == "backpropagation":
            out = z
            for i in range(count):
                out = step(out, i)
        elif how == "latents only":
            out = z
            for i in range(count):
                out = step(out, i)
                _forget(schedule)
        else:
            keep = 2 if how == "keep 2" else 0
            out = rollout(step, z, steps=count, inputs=inputs, state=[schedule], keep_last=keep)
        weight = noise(*out.shape, seed=9, dtype=out.dtype)
        return list(torch.autograd.grad((out * weight).sum(), [z, *inputs]))


def _forget(schedule: object) -> None:
    """What is remembered counts as a constant."""
    for name, value in vars(schedule).items():
        if isinstance(value, Tensor):
            setattr(schedule, name, value.detach())
        elif isinstance(value, list):
            value[:] = [v.detach() if isinstance(v, Tensor) else v for v in value]


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
    )


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of schedulers, about numpy
    kinds = list(SCHEDULERS)
    names = list(DENOISERS)
    if options.quick:  # every scheduler, each with one denoiser
        pairs = [(names[i % len(names)], kind) for i, kind in enumerate(kinds)]
    else:
        pairs = [(name, kind) for kind in kinds for name in names]
    began, rows = time.perf_counter(), []
    print(f"{'scheduler':26}{'denoiser':10}{'exact':>10}{'keep 2':>10}{'latents only':>14}")
    for name, kind in pairs:
        theirs = gradients(name, kind, "backpropagation")
        row = {
            how: error(gradients(name, kind, how), theirs)
            for how in ("checkpointed", "keep 2", "latents only")
        }
        rows.append({"scheduler": kind, "denoiser": name, **row})
        print(
            f"{kind:26}{name:10}{row['checkpointed']:>10.1e}{row['keep 2']:>10.1e}"
            f"{row['latents only']:>14.1e}",
            flush=True,
        )
    print(f"\n{len(pairs)} cases in {time.perf_counter() - began:.0f} s")
    worst = max(max(row["checkpointed"], row["keep 2"]) for row in rows)
    goals = [
        goal("largest relative error, of 1e-10", worst / 1e-10, 1, at_least=False),
        goal("schedulers", len({row["scheduler"] for row in rows}), 18),
    ]
    report("diffusion_gradient", options, seeds=[0], goals=goals, rows=rows, steps=STEPS)


if __name__ == "__main__":
    main()
