"""What refit and finetuning bring back of a pruned text-to-image model.

    python benchmarks/diffusion_recovery.py [--quick] [--json] [--method taylor] [--ratio 0.6]

pipelines/digits_t2i is pruned by a criterion and then left alone, refitted, finetuned (LoRA, all
weights), or refitted and finetuned. All of them look at the same training captions; no image but
those of the dense model is used. The score is that of diffusion_quality.py, on held-out captions:
the share of images that are right in every digit and colour, and the error of the last latent over
the dense one's energy. Goal: each way at least halves the error.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _digits import Classifier, scenes
from _report import goal, parser, report
from diffusion_quality import GUIDANCE, MODEL, OBJECTS, STEPS, captions, measured

import compress3g.diffusion as cd
from compress3g.diffusion.sheet import write_sheet

WAYS = ("pruned", "refit", "lora", "full", "refit+lora")


def recovered(
    pipe: Any, way: str, scores: Any, config: cd.PruneConfig, prompts: list[str], updates: int
) -> Any:
    small = copy.deepcopy(pipe)
    fit = cd.before_cut(small, prompts, config) if "refit" in way else None
    cd.prune(small, scores, before_cut=fit, **config.how())
    method: Any = next((m for m in ("lora", "full") if m in way), None)
    if method is not None:
        cd.finetune(
            small, pipe, prompts,
            cd.FinetuneConfig(method=method, updates=updates, steps=STEPS, guidance=GUIDANCE),
        )  # fmt: skip
    return small


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--method", default="taylor")
    made.add_argument("--ratio", type=float, default=0.6)
    made.add_argument("--updates", type=int, default=200)
    made.add_argument("--captions", type=int, default=240)
    made.add_argument("--sheet", type=Path, help="PNG: dense, then a row per way.")
    options = made.parse_args()
    torch.set_num_threads(1)
    count, updates = (24, 10) if options.quick else (options.captions, options.updates)
    ways = ("pruned", "refit+lora") if options.quick else WAYS
    looked_at = 24 if options.quick else 96
    pipe, judge = cd.open_pipeline(MODEL), Classifier.load(MODEL / "classifier.safetensors")
    noise = np.random.default_rng(0)
    wanted = [s for n in OBJECTS for s in scenes(n, count // 3, noise, held_out=True)]
    row, dense = measured(pipe, wanted, 0, None, judge)
    rows: dict[str, Any] = {"dense": row}
    prompts = captions(looked_at, 0)
    config = cd.PruneConfig(
        method=options.method, ratio=options.ratio, steps=STEPS, guidance=GUIDANCE,
        samples=looked_at, refit=True,
    )  # fmt: skip
    scores = cd.scores_of(copy.deepcopy(pipe), prompts, config)
    pictures = [dense[1][:: max(1, count // 12)][:12]]
    print(f"{'':12}{'right':>8}{'error':>9}{'SSIM':>7}{'CPU s':>7}")
    print(f"{'dense':12}{row['all']:>8.1%}")
    for way in ways:
        began = time.process_time()
        small = recovered(pipe, way, scores, config, prompts, updates)
        seconds = time.process_time() - began
        row, found = measured(small, wanted, 0, dense, judge)
        rows[way] = {**row, "seconds": seconds}
        pictures.append(found[1][:: max(1, count // 12)][:12])
        error, alike = row["latent error"], row["ssim"]
        print(f"{way:12}{row['all']:>8.1%}{error:>9.4f}{alike:>7.3f}{seconds:>7.0f}", flush=True)
    if options.sheet is not None:
        write_sheet(options.sheet, pictures)
    before = rows["pruned"]["latent error"]
    goals = [
        goal(
            f"error after {way} over before",
            rows[way]["latent error"] / before,
            0.5,
            at_least=False,
        )
        for way in ways[1:]
    ]
    settings = {"method": options.method, "ratio": options.ratio, "updates": updates}
    report("diffusion_recovery", options, seeds=[0], goals=goals, rows=rows, **settings)


if __name__ == "__main__":
    main()
