"""How fast a NeRF trains here: PSNR by wall time, samples per CPU-second, peak memory.

    python benchmarks/nerf_train.py [--quick] [--json] [--seconds 60]

One shipped scene, and lego at 200x200 (test views 0, 8, ...) where COMPRESS3G_DATA names the folder
that holds nerf/lego. The peer is the same training with torch eager instead of compiled kernels.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before torch is loaded, as the command line does it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _report import goal, save

from compress3g.kernels.registry import use, use_everywhere
from compress3g.nerf.config import TrainConfig
from compress3g.nerf.result import result_of
from compress3g.nerf.scene import Scene
from compress3g.nerf.trainer import Trainer

SHIPPED = Path(__file__).parent.parent / "scenes"
THREADS = 2


def lego() -> Scene | None:
    """The scene at 200x200, or None with one line that says what is missing."""
    folder = Path(os.environ.get("COMPRESS3G_DATA", "")) / "nerf" / "lego"
    if "COMPRESS3G_DATA" in os.environ and folder.is_dir():
        return Scene.load(folder, downscale=4)
    print("lego skipped: COMPRESS3G_DATA does not name a folder with nerf/lego")
    return None


def train(scene: Scene, config: TrainConfig, backend: str = "auto") -> dict[str, Any]:
    with use(**use_everywhere(backend)):
        trainer = Trainer(scene, config)
        began = time.process_time()
        trainer.fit()
        cpu = time.process_time() - began
        result = result_of(trainer)
    row = {
        "psnr": result.psnr,
        "ssim": result.ssim,
        "steps": result.steps,
        "seconds": result.seconds,
        "cpu_seconds": cpu,
        "msamples_per_cpu_second": result.samples / cpu / 1e6,
        "params": result.params,
    }
    print(
        f"{scene.name:10}{backend:12}{row['psnr']:>7.2f} dB{row['steps']:>7,} steps"
        f"{row['seconds']:>7.0f} s{row['msamples_per_cpu_second']:>7.2f} Msamples/CPU-s",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--long", type=float, default=0, help="Also lego for this many seconds.")
    parser.add_argument("--scene", default="orchard")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    shipped = Scene.load(SHIPPED / options.scene)
    config = TrainConfig(seconds=8.0 if options.quick else options.seconds, log2_hashmap=15)
    rows = {options.scene: train(shipped, config)}
    peer = replace(config, seconds=None, steps=3 if options.quick else 20)
    rows["torch eager"] = train(shipped, peer, "reference")
    scene = None if options.quick else lego()
    goals = [goal("Msamples per CPU-second", rows[options.scene]["msamples_per_cpu_second"], 0.8)]
    if not options.quick:
        goals.append(goal(f"{options.scene} dB", rows[options.scene]["psnr"], 28))
    if scene is not None:
        rows["lego"] = train(scene, config)
        goals.append(goal("lego dB after 60 s", rows["lego"]["psnr"], 28))
        if options.long:
            rows["lego long"] = train(scene, replace(config, seconds=options.long, log2_hashmap=17))
            goals.append(goal("lego dB after 5 min", rows["lego long"]["psnr"], 31))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    goals.append(goal("peak resident memory, GiB", peak, 2.0, at_least=False))
    figures = {"threads": THREADS, "rows": rows, "peak_gib": peak, "goals": goals}
    save("nerf_train", figures, as_json=options.json, keep=not options.quick)


if __name__ == "__main__":
    main()
