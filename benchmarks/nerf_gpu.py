"""How fast a NeRF trains on a GPU: samples a second by backend, PSNR by wall time.

    COMPRESS3G_DATA=FOLDER python benchmarks/nerf_gpu.py [--quick] [--json] [--seconds 60]

The same scene trained for `--short` seconds each by the Triton kernels, by torch eager on the GPU,
and by the kernels in C on the processor: millions of samples a second of training, after the first
steps, in which kernels are compiled and the occupancy grid asks about every cell. Then lego at
800x800 with tables of 2^19 entries, plain and hollow, for `--seconds`: PSNR of the test views 0, 8,
... over white. Without COMPRESS3G_DATA (a folder that holds nerf/lego) all of it on the orchard.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _report import goal, parser, report

from compress3g.kernels.registry import use, use_everywhere
from compress3g.nerf.config import TrainConfig
from compress3g.nerf.result import result_of
from compress3g.nerf.scene import Scene
from compress3g.nerf.trainer import Trainer

SHIPPED = Path(__file__).parent.parent / "scenes" / "orchard"
LONG = 300.0  # seconds in which 32 dB are the goal


def scene_of() -> Scene:
    """Lego where it is found, else the shipped scene."""
    folder = Path(os.environ.get("COMPRESS3G_DATA", "")) / "nerf" / "lego"
    if "COMPRESS3G_DATA" in os.environ and folder.is_dir():
        return Scene.load(folder)
    print("lego skipped: COMPRESS3G_DATA does not name a folder with nerf/lego")
    return Scene.load(SHIPPED)


def finished(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def speed(scene: Scene, config: TrainConfig, backend: str, kind: str, seconds: float) -> Any:
    """Millions of samples a second after the warm-up."""
    device = torch.device(kind)
    with use(**use_everywhere(backend)):
        trainer = Trainer(scene, replace(config, seconds=1e6), device=device)
        while trainer.phase_step <= trainer.phase.warm_up:
            trainer._train_step()
        steps, samples, began = trainer.step, trainer.samples, finished(device)
        while time.perf_counter() - began < seconds:
            trainer._train_step()
        spent = finished(device) - began
    row = {
        "msamples_per_second": (trainer.samples - samples) / spent / 1e6,
        "ms_per_step": 1e3 * spent / (trainer.step - steps),
        "samples_per_step": (trainer.samples - samples) / (trainer.step - steps),
    }
    print(
        f"{backend:10} on {kind:5}{row['msamples_per_second']:>9.2f} Msamples/s"
        f"{row['ms_per_step']:>9.1f} ms a step of {row['samples_per_step']:,.0f} samples",
        flush=True,
    )
    return row


def quality(scene: Scene, config: TrainConfig) -> dict[str, Any]:
    """Trained to the end, then scored on the test views."""
    trainer = Trainer(scene, config, device=torch.device("cuda"))
    trainer.fit()
    result = result_of(trainer)
    row = {
        "psnr": result.psnr, "ssim": result.ssim, "steps": result.steps,
        "seconds": result.seconds, "samples": result.samples,
        "msamples_per_second": result.samples_per_second / 1e6,
        "params": result.params, "kept_fraction": result.kept_fraction,
        "backends": result.backends,
    }  # fmt: skip
    name = "hollow" if config.hollow else "plain"
    print(
        f"{scene.name} {name:7}{row['psnr']:>7.2f} dB{row['steps']:>8,} steps"
        f"{row['seconds']:>7.0f} s{row['msamples_per_second']:>8.1f} Msamples/s"
        f"{row['params'] / 1e6:>7.2f} M parameters",
        flush=True,
    )
    return row


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--seconds", type=float, default=60.0, help="Of each long run (60).")
    options_of.add_argument("--short", type=float, default=8.0, help="Per backend (8).")
    options_of.add_argument("--threads", type=int, default=2, help="Of the processor (2).")
    options = options_of.parse_args()
    if min(options.seconds, options.short) <= 0 or options.threads < 1:
        options_of.error("give more than no seconds, and at least one thread")
    if not torch.cuda.is_available():
        print("skipped: no CUDA device is visible to torch")
        options.quick = True  # nothing to keep
        report("nerf_gpu", options, seeds=[0], goals=[], rows={})
        return
    torch.set_num_threads(options.threads)
    short = 2.0 if options.quick else options.short
    seconds = 6.0 if options.quick else options.seconds
    scene = scene_of()
    config = TrainConfig(log2_hashmap=19, march=1024, occupancy=128)
    rows: dict[str, Any] = {}
    for backend, kind in (("triton", "cuda"), ("reference", "cuda")):
        rows[f"{backend} on {kind}"] = speed(scene, config, backend, kind, short)
    plain = replace(config, seconds=seconds)
    for name, chosen in (("plain", plain), ("hollow", replace(plain, hollow=True))):
        rows[name] = quality(scene, chosen)
        finish(options, scene, rows, [])
    rows["cpu on cpu"] = speed(scene, config, "cpu", "cpu", short)
    fast = rows["triton on cuda"]["msamples_per_second"]
    goals = [
        goal("Triton over the kernels in C", fast / rows["cpu on cpu"]["msamples_per_second"], 50,
             unit="x"),
        goal("Triton over torch eager on the GPU",
             fast / rows["reference on cuda"]["msamples_per_second"], 1, unit="x"),
    ]  # fmt: skip
    if scene.name == "lego":
        goals.append(goal(f"lego, {seconds:g} of {LONG:g} s", rows["plain"]["psnr"], 32, unit="dB"))
    finish(options, scene, rows, goals, complete=True)


def finish(
    options: argparse.Namespace, scene: Scene, rows: Any, goals: Any, *, complete: bool = False
) -> None:
    """Writes what is known by now."""
    report(
        "nerf_gpu", options, seeds=[0], goals=goals, rows=rows, scene=scene.name, complete=complete,
        device=torch.cuda.get_device_name(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
