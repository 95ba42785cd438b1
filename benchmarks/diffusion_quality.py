"""What the shipped text-to-image model still draws right, at equal parameters, by method.

    python benchmarks/diffusion_quality.py [--quick] [--json] [--methods a,b] [--sheet FOLDER]

The denoiser of pipelines/digits_t2i loses 10 to 40 % of its parameters (all of them in the
denominator) by each method, through the same surgery, without retraining. 500 captions of one, two
and four objects that training never showed; the score is the share of images that are right in
every digit and colour, by the classifier beside the model. Seeds draw the prompts that scores look
at (none of them is scored), the scores' own noise, and the images' first noise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _digits import Classifier, Scene, correct, scenes
from _report import goal, parser, report
from torch import Tensor

import compress3g.diffusion as cd
from compress3g.diffusion.metrics import relative_error, ssim
from compress3g.diffusion.sheet import write_sheet
from compress3g.errors import Compress3GError

MODEL = Path(__file__).parent.parent / "pipelines" / "digits_t2i"
STEPS, GUIDANCE = 12, 3.0
OBJECTS = (1, 2, 4)


def made(pipe: Any, wanted: Sequence[Scene], seed: int) -> tuple[Tensor, Tensor]:
    """Latents and images (n, 3, 16, 16), 100 at a time."""
    parts = []
    for first in range(0, len(wanted), 100):
        captions = [s.caption for s in wanted[first : first + 100]]
        how: dict[str, Any] = {"seed": seed * 100_000 + first, "steps": STEPS, "guidance": GUIDANCE}
        parts.append(cd.generate(pipe, captions, **how, output="latent"))
    latents = torch.cat(parts)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return latents, (decoded / 2 + 0.5).clamp(0, 1)


def measured(
    pipe: Any,
    wanted: Sequence[Scene],
    seed: int,
    dense: tuple[Tensor, Tensor] | None,
    judge: Classifier,
) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
    latents, images = made(pipe, wanted, seed)
    right = correct(images, wanted, judge).float()
    counts = torch.tensor([len(s.objects) for s in wanted])
    row = {f"{n} objects": float(right[counts == n].mean()) for n in OBJECTS}
    row["all"] = float(right.mean())
    if dense is not None:
        row["latent error"] = relative_error(latents, dense[0])
        row["ssim"] = float(ssim(images, dense[1]).mean())
    return row, (latents, images)


def scored(
    pipe: Any, method: str, ratio: float, seed: int, looked_at: int
) -> tuple[Any, dict[str, Any]]:
    """Scores of a method and how they are to be compared."""
    noise = np.random.default_rng(1000 + seed)
    prompts = [s.caption for n in OBJECTS for s in scenes(n, looked_at // 3, noise, held_out=False)]
    config = cd.PruneConfig(
        method=method, ratio=ratio, steps=STEPS, guidance=GUIDANCE, samples=looked_at, seed=seed
    )
    return cd.scores_of(copy.deepcopy(pipe), prompts, config), config.how()


def run(options: Any) -> tuple[dict[str, Any], list[int]]:
    pipe, judge = cd.open_pipeline(MODEL), Classifier.load(MODEL / "classifier.safetensors")
    seeds = [0] if options.quick else [0, 1, 2]
    ratios = [0.2] if options.quick else [0.1, 0.2, 0.3, 0.4]
    count, looked_at = (36, 12) if options.quick else (500, 96)
    size = sum(p.numel() for p in pipe.unet.parameters())
    rows: dict[str, Any] = {}
    print(
        f"{'':12}{'ratio':>7}{'gone':>8}{'1':>8}{'2':>8}{'4':>8}{'all':>8}{'latents':>9}{'SSIM':>7}"
    )
    for seed in seeds:
        noise = np.random.default_rng(seed)
        shares = [count // 3, count // 3, count - 2 * (count // 3)]
        wanted = [
            s
            for n, c in zip(OBJECTS, shares, strict=True)
            for s in scenes(n, c, noise, held_out=True)
        ]
        row, dense = measured(pipe, wanted, seed, None, judge)
        rows[f"dense/0/{seed}"] = row
        show("dense", 0.0, 0.0, row)
        pictures = [dense[1][:: max(1, count // 12)]]
        for method in options.methods.split(","):
            for ratio in ratios:
                try:
                    scores, how = scored(pipe, method, ratio, seed, looked_at)
                except Compress3GError as error:
                    print(f"{method:12}{error}")
                    break
                small = cd.prune(copy.deepcopy(pipe), scores, **how)
                gone = 1 - sum(p.numel() for p in small.unet.parameters()) / size
                row, found = measured(small, wanted, seed, dense, judge)
                rows[f"{method}/{ratio:g}/{seed}"] = {**row, "gone": gone}
                show(method, ratio, gone, row)
                if ratio in (0.2, 0.3):
                    pictures.append(found[1][:: max(1, count // 12)])
        if options.sheet is not None:
            write_sheet(options.sheet / f"seed{seed}.png", pictures)
    return rows, seeds


def show(method: str, ratio: float, gone: float, row: dict[str, float]) -> None:
    exact = "".join(f"{row[k]:>8.1%}" for k in ("1 objects", "2 objects", "4 objects", "all"))
    close = "".join(
        f"{row.get(k, math.nan):>{w}.3f}" for k, w in (("latent error", 9), ("ssim", 7))
    )
    print(f"{method:12}{ratio:>7.0%}{gone:>8.1%}{exact}{close}", flush=True)


def mean(rows: dict[str, Any], method: str, ratio: float) -> float:
    """Accuracy in percent over seeds; NaN when it was not measured."""
    found = [r["all"] for k, r in rows.items() if k.startswith(f"{method}/{ratio:g}/")]
    return 100 * sum(found) / len(found) if found else math.nan


def main() -> None:
    made_by = parser(__doc__)
    made_by.add_argument("--methods", default="random,magnitude,taylor,fisher,ecodiff")
    made_by.add_argument(
        "--sheet", type=Path, help="Folder for PNGs: dense, then 20 and 30 percent."
    )
    options = made_by.parse_args()
    torch.set_num_threads(1)
    rows, seeds = run(options)
    goals = []
    lost = mean(rows, "dense", 0) - mean(rows, "ecodiff", 0.2)
    if not math.isnan(lost):
        goals.append(goal("points lost at 20 %, ecodiff", lost, 2, unit="points", at_least=False))
    peers = [mean(rows, m, 0.3) for m in ("random", "magnitude", "taylor")]
    gained = mean(rows, "ecodiff", 0.3) - max(peers)
    if not math.isnan(gained):
        goals.append(goal("above the best peer at 30 %", gained, 10, unit="points"))
    report("diffusion_quality", options, seeds=seeds, goals=goals, rows=rows)


if __name__ == "__main__":
    main()
