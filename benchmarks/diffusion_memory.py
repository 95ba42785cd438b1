"""Memory and time of the last latent's gradient by the number of steps.

    python benchmarks/diffusion_memory.py [--quick] [--json]

A random U-Net (64 and 128 channels, two resolutions, cross-attention), latents of 32 x 32, guidance
in one batch of two, DDIM; the gradient at a gate on every head, neuron and channel group, weights
frozen. Memory: the peak of a process's resident memory, one for each case, over what it was before
the trajectory (model and libraries loaded, one forward pass for warm-up). Time: CPU seconds of one
gradient, the least of the runs; each round runs all methods, in an order drawn anew. One thread.

    plain      backpropagation through all steps
    rollout    time-step checkpointing; "keep 1" lets the last step keep its graph
    two calls  time-step checkpointing as EcoDiff's code does it: two backward passes per step, one
               for the latent, one for the masks
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _report import goal, parser, report
from torch import Tensor

from compress3g.core import gated
from compress3g.diffusion import rollout, units_of

METHODS = ("plain", "rollout", "keep 1", "two calls")


def problem(size: int) -> tuple[Any, list[Any], dict[str, Tensor]]:
    import diffusers

    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(64, 128),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=64,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    model = model.eval().requires_grad_(False)
    units = units_of(model)
    return model, units, {u.name: torch.ones(u.size, requires_grad=True) for u in units}


def gradient(
    model: Any, gates: dict[str, Tensor], method: str, steps: int, size: int
) -> list[Tensor]:
    import diffusers

    schedule = diffusers.DDIMScheduler()
    schedule.set_timesteps(steps)
    g = torch.Generator().manual_seed(1)
    prompt = torch.randn(2, 16, 64, generator=g)
    z = torch.randn(1, 4, size, size, generator=g)

    def step(z: Tensor, i: int) -> Tensor:
        t = schedule.timesteps[i]
        free, told = model(torch.cat([z, z]), t, prompt).sample.chunk(2)
        return schedule.step(free + 5.0 * (told - free), t, z).prev_sample

    inputs = list(gates.values())
    if method == "two calls":
        return two_calls(step, z, steps, inputs)
    if method == "plain":
        for i in range(steps):
            z = step(z, i)
    else:
        keep = 1 if method == "keep 1" else 0
        z = rollout(step, z, steps=steps, inputs=inputs, state=[schedule], keep_last=keep)
    return list(torch.autograd.grad(z.square().mean(), inputs))


def two_calls(
    step: Callable[[Tensor, int], Tensor], z: Tensor, steps: int, inputs: list[Tensor]
) -> list[Tensor]:
    latents = []
    with torch.no_grad():
        for i in range(steps):
            latents.append(z)
            z = step(z, i)
    z = z.detach().requires_grad_()
    (g,) = torch.autograd.grad(z.square().mean(), z)
    total = [torch.zeros_like(x) for x in inputs]
    for i in reversed(range(steps)):
        z = latents.pop().detach().requires_grad_()
        out = step(z, i)
        for t, more in zip(total, torch.autograd.grad(out, inputs, g, retain_graph=True),
                           strict=True):  # fmt: skip
            t += more
        (g,) = torch.autograd.grad(out, z, g)
    return total


def peak() -> int:
    """KiB. Not getrusage's, which begins with the peak of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def child(method: str, steps: int, size: int) -> None:
    """Prints the growth of the peak, MiB."""
    torch.set_num_threads(1)
    model, units, gates = problem(size)
    with gated(model, units, gates):
        with torch.no_grad():
            model(torch.zeros(2, 4, size, size), 1, torch.zeros(2, 16, 64))
        before = peak()
        gradient(model, gates, method, steps, size)
    print(json.dumps((peak() - before) / 1024))


def memory(method: str, steps: int, size: int) -> float:
    command = [sys.executable, "-W", "ignore", __file__, "--child", method, str(steps), str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def times(methods: Sequence[str], steps: int, size: int, rounds: int) -> dict[str, list[float]]:
    model, units, gates = problem(size)
    order, seconds = random.Random(steps), {m: [] for m in methods}
    with gated(model, units, gates):
        gradient(model, gates, "rollout", 1, size)
        for _ in range(rounds):
            for method in order.sample(methods, len(methods)):
                began = time.process_time()
                gradient(model, gates, method, steps, size)
                seconds[method].append(time.process_time() - began)
    return seconds


def main() -> None:
    if "--child" in sys.argv:
        method, steps, size = sys.argv[-3:]
        return child(method, int(steps), int(size))
    options: argparse.Namespace = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    size = 16 if options.quick else 32
    counts = (10, 50) if options.quick else (5, 10, 20, 50)
    methods = METHODS[:2] if options.quick else METHODS
    rows = []
    print(f"{'steps':>5}  {'method':10}{'peak MiB':>10}{'CPU s':>8}{'of plain':>10}")
    for steps in counts:
        # Long trajectories average by themselves.
        seconds = times(methods, steps, size, 1 if options.quick else max(1, 40 // steps))
        for method in methods:
            least = min(seconds[method])
            row = {
                "steps": steps,
                "method": method,
                "mib": memory(method, steps, size),
                "seconds": least,
                "ratio": least / min(seconds["plain"]),
                "all seconds": seconds[method],
            }
            rows.append(row)
            print(
                f"{steps:>5}  {method:10}{row['mib']:>10.0f}{least:>8.2f}{row['ratio']:>10.2f}",
                flush=True,
            )
    of = {(row["steps"], row["method"]): row for row in rows}
    grown = of[50, "rollout"]["mib"] / of[10, "rollout"]["mib"]

    def slower(than: str) -> float:
        """Over all rows together."""
        ours, theirs = (sum(of[n, m]["seconds"] for n in counts) for m in ("rollout", than))
        return ours / theirs

    goals = [
        goal("memory, 50 steps over 10", grown, 1.05, at_least=False),
        goal("time over plain backpropagation", slower("plain"), 1.45, at_least=False),
    ]
    if "two calls" in methods:
        goals.append(goal("time over two calls", slower("two calls"), 0.85, at_least=False))
    report("diffusion_memory", options, seeds=[0], goals=goals, rows=rows, size=size)


if __name__ == "__main__":
    main()
