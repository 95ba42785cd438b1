"""What the shipped text-to-image model still draws right, at equal parameters, by method.

    python benchmarks/diffusion_quality.py [--quick] [--json] [--methods a,b] [--sheet FOLDER]

The denoiser of pipelines/digits_t2i loses shares of its parameters (all of them in the denominator)
by each method, through the same surgery, without retraining. Held-out captions of one, two and four
objects; the score is the share of images that are right in every digit and colour, by the
classifier beside the model. Methods: `magnitude` takes the same share of every group, `magnitude_z`
ranks z-scores over all groups; `step` is EcoDiff's baseline, the loss of every step on its own;
`control` keeps as many units of each group as `ecodiff`, but at random. Whatever a method looks at
are training captions. Seeds draw these, the scores' own noise, and the images' first noise.
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
UPDATES = 30  # of masks, each of one batch of 8 training captions, 8 steps
METHODS = ("random", "magnitude", "magnitude_z", "taylor", "fisher", "step", "ecodiff", "control")


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


def captions(count: int, seed: int) -> list[str]:
    """Of training scenes, as many of every number of objects."""
    noise = np.random.default_rng(1000 + seed)
    drawn = [s.caption for n in OBJECTS for s in scenes(n, count // 3, noise, held_out=False)]
    return [drawn[i] for i in noise.permutation(len(drawn))]


def scored(
    pipe: Any, method: str, ratio: float, seed: int, looked_at: int, learnt: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Scores of a method and how they are to be compared. learnt: masks by loss, of this ratio."""
    how: dict[str, Any] = {"ratio": ratio}
    if method in ("ecodiff", "step", "control"):
        loss: Any = "step" if method == "step" else "last"
        if loss not in learnt:
            config = cd.EcoDiffConfig(
                target=ratio, loss=loss, seed=seed, steps=8, guidance=GUIDANCE, batch=8,
                accumulate=1, updates=UPDATES, learning_rate=0.2,
            )  # fmt: skip
            prompts = captions(looked_at, seed)
            learnt[loss] = cd.learn_masks(copy.deepcopy(pipe), prompts, config).logits
        if method != "control":
            return learnt[loss], how
        # As many units of every group as EcoDiff leaves, any of them.
        draw = torch.Generator().manual_seed(seed)
        return {n: z[torch.randperm(len(z), generator=draw)] for n, z in learnt[loss].items()}, how
    of_criterion: Any = "magnitude" if method == "magnitude_z" else method
    config = cd.PruneConfig(
        method=of_criterion, ratio=ratio, steps=STEPS, guidance=GUIDANCE, samples=looked_at,
        seed=seed, scope="global" if method == "magnitude_z" else "auto",
    )  # fmt: skip
    how = config.how() | ({"normalize": "z"} if method == "magnitude_z" else {})
    return cd.scores_of(copy.deepcopy(pipe), captions(looked_at, seed), config), how


def run(options: Any) -> tuple[dict[str, Any], list[int]]:
    pipe, judge = cd.open_pipeline(MODEL), Classifier.load(MODEL / "classifier.safetensors")
    seeds = [0] if options.quick else list(range(options.seeds))
    ratios = [0.2] if options.quick else [float(r) for r in options.ratios.split(",")]
    count, looked_at = (36, 12) if options.quick else (options.captions, 96)
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
        pictures: dict[str, Tensor] = {"dense": dense[1][:: max(1, count // 12)][:12]}
        for ratio in ratios:
            learnt: dict[str, Any] = {}
            for method in options.methods.split(","):
                try:
                    scores, how = scored(pipe, method, ratio, seed, looked_at, learnt)
                    small = cd.prune(copy.deepcopy(pipe), scores, **how)
                except Compress3GError as error:
                    print(f"{method:12}{error}")
                    continue
                gone = 1 - sum(p.numel() for p in small.unet.parameters()) / size
                row, found = measured(small, wanted, seed, dense, judge)
                rows[f"{method}/{ratio:g}/{seed}"] = {**row, "gone": gone}
                show(method, ratio, gone, row)
                pictures[f"{method} {ratio:.0%}"] = found[1][:: max(1, count // 12)][:12]
        if options.sheet is not None:
            write_sheet(options.sheet / f"seed{seed}.png", list(pictures.values()))
            print("rows of the sheet:", ", ".join(pictures))
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
    made_by.add_argument("--methods", default=",".join(METHODS))
    made_by.add_argument("--ratios", default="0.1,0.2,0.3,0.4", help="Shares that go.")
    made_by.add_argument("--seeds", type=int, default=3)
    made_by.add_argument("--captions", type=int, default=500, help="Per seed.")
    made_by.add_argument("--sheet", type=Path, help="Folder for PNGs: a row per method and ratio.")
    options = made_by.parse_args()
    torch.set_num_threads(1)
    rows, seeds = run(options)
    goals = []
    lost = mean(rows, "dense", 0) - mean(rows, "ecodiff", 0.2)
    if not math.isnan(lost):
        goals.append(goal("points lost at 20 %, ecodiff", lost, 2, unit="points", at_least=False))
    peers = [mean(rows, m, 0.3) for m in ("random", "magnitude", "magnitude_z", "taylor")]
    peers = [p for p in peers if not math.isnan(p)]
    gained = mean(rows, "ecodiff", 0.3) - max(peers, default=math.nan)
    if not math.isnan(gained):
        goals.append(goal("above the best peer at 30 %", gained, 10, unit="points"))
    report("diffusion_quality", options, seeds=seeds, goals=goals, rows=rows)


if __name__ == "__main__":
    main()
