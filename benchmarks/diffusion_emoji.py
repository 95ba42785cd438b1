"""What the emoji model still draws recognisably, at equal parameters, by method.

    python benchmarks/diffusion_emoji.py --model FOLDER [--quick] [--json] [--sheet FILE]

As diffusion_quality.py, on pictures that nobody composed for the purpose: the denoiser of the
folder that train_emoji.py makes loses shares of its parameters without retraining. Half of the
captions were in training, half are held out (skins and roles); the judge beside the model, trained
apart on all real pictures, says which of 3,120 emoji an image shows. "five": the right one is among
the first five.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _diffusion_bench import Task, add_options, draw_sheet, mean, run, table
from _emoji import Emoji, Judge, judged, read_list
from _report import goal, parser, report
from torch import Tensor

METHODS = (
    "ecodiff@0.3,magnitude,taylor,random,fisher,step@0.3,"
    "ecodiff@0.3+refit,taylor+refit,fisher+refit"
)
QUICK = "magnitude"
SHEET = "dense,fisher/0.1,magnitude/0.1,fisher/0.2,fisher+refit/0.2,taylor/0.2,magnitude/0.2"
PEERS = ("random", "magnitude", "taylor")  # that EcoDiff's goal names


def emoji(model: Path, device: str = "cpu") -> Task:
    known, drawn = read_list(model / "emoji.txt")
    judge = Judge.load(model / "judge.safetensors").to(device)
    number = {e: i for i, e in enumerate(known)}
    seen = [known[i] for i in drawn["seen"]]
    kept = [known[i] for group, of in drawn.items() if group != "seen" for i in of]

    def held_out(count: int, seed: int) -> list[Emoji]:
        noise = np.random.default_rng(seed)
        halves = ((seen, count - count // 2), (kept, count // 2))
        return [
            of[i] for of, n in halves for i in noise.choice(len(of), min(n, len(of)), replace=False)
        ]

    def looked_at(count: int, seed: int) -> list[str]:
        noise = np.random.default_rng(1000 + seed)
        return [seen[i].caption for i in noise.choice(len(seen), count, replace=False)]

    def right(images: Tensor, wanted: Sequence[Emoji]) -> dict[str, float]:
        found = judged(images.to(device), [number[e] for e in wanted], known, judge).float()
        old = torch.tensor([e.group == "seen" for e in wanted])
        return {
            "seen": float(found[old, 0].mean()),
            "held out": float(found[~old, 0].mean()),
            "all": float(found[:, 0].mean()),
            "five": float(found[:, 1].mean()),
        }

    return Task(model, held_out, looked_at, right, ("seen", "held out", "all", "five"))


def goals(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the digits, on the right one among the first five."""
    found = []
    lost = 100 * (mean(rows, "dense", 0, "five") - mean(rows, "ecodiff@0.3", 0.2, "five"))
    if not math.isnan(lost):
        found.append(goal("points lost at 20 %, ecodiff@0.3", lost, 2, unit="", at_least=False))
    peers = [100 * mean(rows, m, 0.3, "five") for m in PEERS]
    gained = 100 * mean(rows, "ecodiff@0.3", 0.3, "five") - max(
        (p for p in peers if not math.isnan(p)), default=math.nan
    )
    if not math.isnan(gained):
        found.append(goal("points of ecodiff@0.3 above the best peer at 30 %", gained, 10))
    return found


def main() -> None:
    made_by = parser(__doc__)
    made_by.add_argument("--model", type=Path, help="Made by train_emoji.py.")
    add_options(made_by, "runs/diffusion_emoji", captions=160)
    made_by.add_argument("--rows", default=SHEET, help="Of the sheet.")
    made_by.set_defaults(methods=METHODS, ratios="0.3,0.2,0.4,0.1")
    options = made_by.parse_args()
    if options.quick:
        options.methods = QUICK
    if options.model is None:
        raise SystemExit("needs --model FOLDER, which benchmarks/train_emoji.py makes")
    torch.set_num_threads(1)
    task = emoji(options.model, options.device)
    if options.sheet is not None:
        draw_sheet(task, options)
        return
    rows, seeds = run(task, options)
    ratios = sorted({float(name.split("/")[1]) for name in rows} - {0.0})
    table(rows, options.methods.split(","), ratios, "five")
    report("diffusion_emoji", options, seeds=seeds, goals=goals(rows), rows=rows)


if __name__ == "__main__":
    main()
