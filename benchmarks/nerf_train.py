"""How fast a NeRF trains here: PSNR by wall time, samples per CPU-second, peak memory.

    COMPRESS3G_DATA=FOLDER python benchmarks/nerf_train.py --long 300 [--quick] [--json]

One shipped scene, and lego at 200x200 (test views 0, 8, ...) where COMPRESS3G_DATA names the folder
that holds nerf/lego; `--long` adds a longer run of lego with a larger table. The peer is the same
training with torch eager instead of compiled kernels.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before torch is loaded, as the command line does it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _report import goal, parser, report

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
    result = result_of(trainer)  # the test views are rendered by our kernels for all
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
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--long", type=float, default=0, help="Also lego for this many seconds.")
    arguments.add_argument("--scene", default="orchard")
    options = arguments.parse_args()
    torch.set_num_threads(THREADS)
    seconds = 8.0 if options.quick else options.seconds
    config = TrainConfig(seconds=seconds, log2_hashmap=15)
    # Scene, configuration, and the PSNR to reach; quick runs are too short to have one.
    first = f"{options.scene} {seconds:g} s"
    runs = {first: (Scene.load(SHIPPED / options.scene), config, 28)}
    scene = None if options.quick else lego()
    if scene is not None:
        runs[f"lego {seconds:g} s"] = (scene, config, 28)
        if options.long:
            large = replace(config, seconds=options.long, log2_hashmap=17)
            runs[f"lego {options.long:g} s"] = (scene, large, 31)
    rows = {name: train(scene, config) for name, (scene, config, _) in runs.items()}
    peer = replace(config, seconds=None, steps=3 if options.quick else 20)
    rows["torch eager"] = train(runs[first][0], peer, "reference")

    speed = rows[first]["msamples_per_cpu_second"]
    goals = [goal("training speed", speed, 0.8, unit="Msamples per CPU-second")]
    if not options.quick:
        for name, (_, _, psnr) in runs.items():
            goals.append(goal(name, rows[name]["psnr"], psnr, unit="dB"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    goals.append(goal("peak resident memory", peak, 2.0, unit="GiB", at_least=False))
    skipped = [] if scene is not None else ["lego"]
    report("nerf_train", options, seeds=[config.seed], goals=goals, rows=rows, skipped=skipped)


if __name__ == "__main__":
    main()
