"""Pruning of denoisers of published size on a GPU: speed, and the gradient of whole trajectories.

    python benchmarks/diffusion_gpu.py [--quick] [--json]

Random weights in bfloat16: the U-Net of Stable Diffusion 2.1 and the transformer of Stable
Diffusion 3 medium, latents of 64 x 64, 77 tokens of text.

speed     units scored by magnitude, cut with the product's own rounding; a batch of sixteen (eight
          images with guidance, so that the GPU has enough to do). Dense and pruned
          run in turn (`compress3g.profile.compare`), in CUDA events. "of MACs" is the share of time
          that is saved over the share of multiply-adds that is.
gradient  of the last latent at a gate on every unit of the U-Net, one image, DDIM, guidance: plain
          backpropagation against time-step checkpointing. Memory: the most that torch's allocator
          held above the model. Plain backpropagation is left out where it would not fit.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from _pruned_speed import Given, Pipe, speeds
from _report import goal, parser, report
from torch import Tensor

from compress3g.core import gated
from compress3g.diffusion import rollout, units_of

BATCH = 16


@contextmanager
def on_gpu() -> Iterator[None]:
    """What is made inside is bfloat16 on the GPU."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def unet() -> tuple[Pipe, Given]:
    import diffusers

    with on_gpu():
        # What diffusers calls `attention_head_dim` is the number of heads.
        model = diffusers.UNet2DConditionModel(
            sample_size=64, attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024,
            use_linear_projection=True,
        )  # fmt: skip
        return Pipe(unet=model), {
            "sample": torch.randn(BATCH, 4, 64, 64), "timestep": torch.tensor(500),
            "encoder_hidden_states": torch.randn(BATCH, 77, 1024),
        }  # fmt: skip


def transformer() -> tuple[Pipe, Given]:
    import diffusers

    with on_gpu():
        model = diffusers.SD3Transformer2DModel(
            sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24,
            joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
            in_channels=16, out_channels=16, pos_embed_max_size=192,
        )  # fmt: skip
        return Pipe(transformer=model), {
            "hidden_states": torch.randn(BATCH, 16, 64, 64),
            "timestep": torch.full((BATCH,), 500.0),
            "encoder_hidden_states": torch.randn(BATCH, 77, 4096),
            "pooled_projections": torch.randn(BATCH, 2048),
        }  # fmt: skip


def gradient(
    model: Any, gates: dict[str, Tensor], given: Given, steps: int, *, plain: bool
) -> list[Tensor]:
    import diffusers

    schedule = diffusers.DDIMScheduler()
    schedule.set_timesteps(steps, device="cuda")
    prompt, z = given["encoder_hidden_states"][:2], given["sample"][:1]

    def step(z: Tensor, i: int) -> Tensor:
        t = schedule.timesteps[i]
        free, told = model(torch.cat([z, z]), t, prompt).sample.chunk(2)
        return schedule.step(free + 5.0 * (told - free), t, z).prev_sample

    inputs = list(gates.values())
    if plain:
        for i in range(steps):
            z = step(z, i)
    else:
        z = rollout(step, z, steps=steps, inputs=inputs, state=[schedule])
    return list(torch.autograd.grad(z.float().square().mean(), inputs))


def trajectory(pipe: Any, given: Given, steps: int, *, plain: bool, runs: int) -> Any:
    """Memory above the model in GiB, and the median of the runs' seconds."""
    model = pipe.unet.eval().requires_grad_(False)
    units = units_of(model)
    gates = {u.name: torch.ones(u.size, device="cuda", requires_grad=True) for u in units}
    seconds = []
    with gated(model, units, gates):
        gradient(model, gates, given, 1, plain=False)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(runs):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            gradient(model, gates, given, steps, plain=plain)
            ended.record()
            torch.cuda.synchronize()
            seconds.append(began.elapsed_time(ended) / 1e3)
    held = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    return {"GiB": held / 2**30, "seconds": statistics.median(seconds)}


def gradients(quick: bool) -> dict[str, Any]:
    pipe, given = unet()
    rows: dict[str, Any] = {}
    runs = 1 if quick else 3
    print(f"{'steps':>5}  {'method':10}{'GiB':>8}{'s':>8}")
    for steps, plain in ((5, True), (5, False), (10, True), (10, False), (20, False), (50, False)):
        name = "plain" if plain else "rollout"
        row = rows[f"{name}/{steps}"] = trajectory(pipe, given, steps, plain=plain, runs=runs)
        print(f"{steps:>5}  {name:10}{row['GiB']:>8.2f}{row['seconds']:>8.2f}", flush=True)
    return rows


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--seconds", type=float, default=5.0, help="Per speed (default 5).")
    options = options_of.parse_args()
    if options.seconds <= 0:
        options_of.error("give more than no seconds")
    if not torch.cuda.is_available():
        print("skipped: no CUDA device is visible to torch")
        options.quick = True  # nothing to keep
        report("diffusion_gpu", options, seeds=[0], goals=[], rows={})
        return
    denoisers = {"Stable Diffusion 2.1": unet, "SD 3 medium": transformer}
    seconds = 1.0 if options.quick else options.seconds
    rows, goals = speeds(denoisers, seconds=seconds, device="cuda")
    finish(options, rows, goals)
    print()
    of = gradients(options.quick)
    grown = of["rollout/50"]["GiB"] / of["rollout/10"]["GiB"]
    slower = [of[f"rollout/{n}"]["seconds"] / of[f"plain/{n}"]["seconds"] for n in (5, 10)]
    goals += [
        goal("memory, 50 steps over 10", grown, 1.05, at_least=False),
        goal("time over plain backpropagation", statistics.mean(slower), 1.45, at_least=False),
    ]
    finish(options, rows | of, goals, complete=True)


def finish(
    options: argparse.Namespace, rows: Any, goals: list[dict[str, Any]], *, complete: bool = False
) -> None:
    """Writes what is known by now."""
    device = torch.cuda.get_device_name()
    report(
        "diffusion_gpu",
        options,
        seeds=[0],
        goals=goals,
        rows=rows,
        device=device,
        complete=complete,
    )


if __name__ == "__main__":
    main()
