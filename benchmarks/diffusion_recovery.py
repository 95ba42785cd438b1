"""What refit and finetuning bring back of a pruned text-to-image model.

    python benchmarks/diffusion_recovery.py [--quick] [--json] [--method taylor] [--ratio 0.3]

pipelines/digits_t2i is pruned by a criterion and then left alone, refitted, finetuned (LoRA, all
weights), or refitted and finetuned. All of them look at the same training captions; no image but
those of the dense model is used. On held-out captions: the share of images that are right in every
digit and colour, and the error of the last latent over the dense one's energy. Goal: each way at
least halves the error.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _digits import OBJECTS, scenes
from _digits_score import MODEL, right
from _report import goal, parser, report

import compress3g.diffusion as cd
from compress3g.diffusion.likeness import Pictures, likeness, pictures
from compress3g.diffusion.sheet import write_sheet

WAYS = ("pruned", "refit", "lora", "full", "refit+lora")
HOW: dict[str, Any] = {"steps": 12, "guidance": 3.0}


def captions(count: int, *, held_out: bool) -> list[str]:
    """As many of every number of objects, mixed."""
    noise = np.random.default_rng(0)
    drawn = [s.caption for n in OBJECTS for s in scenes(n, count // 3, noise, held_out=held_out)]
    return [drawn[i] for i in noise.permutation(len(drawn))]


def recovered(
    pipe: Any, way: str, scores: Any, config: cd.PruneConfig, prompts: list[str], updates: int
) -> Any:
    small = copy.deepcopy(pipe)
    fit = cd.before_cut(small, prompts, config) if "refit" in way else None
    cd.prune(small, scores, before_cut=fit, **config.how())
    method: Any = next((m for m in ("lora", "full") if m in way), None)
    if method is not None:
        learning = cd.FinetuneConfig(method=method, updates=updates, **HOW)
        cd.finetune(small, pipe, prompts, learning)
    return small


def row_of(way: str, dense: Pictures, made: Pictures, seconds: float) -> dict[str, Any]:
    found = likeness(dense, made, right)
    accuracy = 0.0 if found.scores is None else found.scores[1]
    row = {**found.to_json(), "right": accuracy, "seconds": seconds}
    error, alike = row["latent_error"], row["ssim"]
    print(f"{way:12}{accuracy:>8.1%}{error:>9.4f}{alike:>7.3f}{seconds:>7.0f}", flush=True)
    return row


def main() -> None:
    made_by = parser(__doc__)
    made_by.add_argument("--method", default="taylor")
    made_by.add_argument("--ratio", type=float, default=0.3)
    made_by.add_argument("--updates", type=int, default=200)
    made_by.add_argument("--captions", type=int, default=120)
    made_by.add_argument("--sheet", type=Path, help="PNG: dense, then a row per way.")
    options = made_by.parse_args()
    torch.set_num_threads(1)
    count, updates = (24, 10) if options.quick else (options.captions, options.updates)
    ways = ("pruned", "refit+lora") if options.quick else WAYS
    prompts = captions(24 if options.quick else 96, held_out=False)
    pipe, wanted = cd.open_pipeline(MODEL), captions(count, held_out=True)
    config = cd.PruneConfig(
        method=options.method, ratio=options.ratio, samples=len(prompts), refit=True, **HOW
    )
    scores = cd.scores_of(copy.deepcopy(pipe), prompts, config)
    print(f"{'':12}{'right':>8}{'error':>9}{'SSIM':>7}{'CPU s':>7}")
    dense = pictures(pipe, wanted, images=True, **HOW)
    rows, shown = {"dense": row_of("dense", dense, dense, 0.0)}, [dense]
    for way in ways:
        began = time.process_time()
        small = recovered(pipe, way, scores, config, prompts, updates)
        seconds = time.process_time() - began
        shown.append(pictures(small, wanted, images=True, **HOW))
        rows[way] = row_of(way, dense, shown[-1], seconds)
    if options.sheet is not None:
        write_sheet(options.sheet, [p.images[:12] for p in shown if p.images is not None])
    left = {way: rows[way]["latent_error"] / rows["pruned"]["latent_error"] for way in ways[1:]}
    goals = [
        goal(f"error after {way} over before", share, 0.5, at_least=False)
        for way, share in left.items()
    ]
    settings = {"method": options.method, "ratio": options.ratio, "updates": updates}
    report("diffusion_recovery", options, seeds=[0], goals=goals, rows=rows, **settings)


if __name__ == "__main__":
    main()
