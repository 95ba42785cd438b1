"""Does a router that sends prompts to networks of several sizes beat one network of the mean size?

    python benchmarks/aptp.py [--quick] [--json] [--seeds 0,1,2] [--target .34] [--masks PATH]

The denoiser of pipelines/digits_t2i is to keep a third of its multiply-adds on average. Captions
name one, two or four digits, and nobody tells the router so. Networks cut so far answer nothing
right before they have learnt, and no caption is told from another: the router measures need at
`--need`. Codes are cut again for their own captions, by `--recut`, the one code of "one code" too.
Then every network has `--updates` of `--batch` captions at the times of the sampler, by the loss of
`route finetune`. Experts make the share `--common` of all their updates together, as parts of one
network, and the others each from the captions that are routed to it (with `--larger`, to larger
ones too); single networks learn from all, and those of magnitude and of one code once more for as
many updates as all experts together. Speed is that of pipelines/digits_aptp, made by the same
recipe. The score is the share of held-out captions whose image is right in every digit and colour.
`--updates 0`: as cut. `--rows ''`: routers alone. `--masks` is a folder of ecodiffSEED.safetensors,
the logits of EcoDiff's masks; they are learnt where there are none. `--validate` judges by other
training captions and not by held-out ones: by them settings are chosen. What is finished stays in
--work.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import goal, parser, report
from _routing import (
    EVEN,
    GUIDANCE,
    HARD,
    OBJECTS,
    Seed,
    captions_of,
    kind_of_run,
    multiply_adds,
    texts,
)
from _routing_bank import Course
from _routing_speed import speed_of
from scipy.stats import spearmanr
from torch import nn

import compress3g.diffusion as cd
from compress3g.diffusion.aptp import AptpPipeline, Router
from compress3g.diffusion.aptp.experts import expert_of
from compress3g.diffusion.aptp.finetune import as_parts, lessons_of
from compress3g.errors import Compress3GError

LONG = " as long as all experts"
ROWS = ("routed", "magnitude", "ecodiff", "one code", "magnitude" + LONG, "one code" + LONG)
MANY = 3000  # captions: a budget is a mean, and to know it to a hundredth takes more than are drawn


def about(s: Seed, router: Router) -> dict[str, Any]:
    """What a router does with held-out captions, without drawing."""
    owner = AptpPipeline(s.pipe, router)
    many, hard = (
        texts(captions_of(count, first + s.seed, held_out=True, shares=shares))
        for count, first, shares in ((MANY, 7000, EVEN), (s.options.captions, 50, HARD))
    )
    routed = owner.route(texts(s.wanted))
    varies = len(routed.shares.unique()) > 1
    row = {
        "shares": router.shares.tolist(),
        "cosine": router.likeness(),
        "share": float(routed.shares.mean()),
        "entropy": router.entropy(routed.experts),
        "used": len(routed.experts.unique()),
        "spearman": float(spearmanr(s.counts, routed.shares)[0]) if varies else 0.0,
        "by count": {str(n): float(routed.shares[s.counts == n].mean()) for n in OBJECTS},
        "share of many": float(owner.route(many).shares.mean()),
        "share of hard before": float(owner.route(hard).shares.mean()),
    }
    owner.rebalance(hard)
    return {**row, "share of hard": float(owner.route(hard).shares.mean())}


def trained_experts(s: Seed) -> list[nn.Module]:
    """Of `--updates` each: together for the share `--common` of all of them, then on its own."""
    options, router = s.options, s.owner.router
    chosen = s.owner.route(texts(s.training)).experts
    together = round(options.updates * options.experts * options.common)
    alone = round(options.updates * (1 - options.common))
    whole = copy.deepcopy(s.pipe.unet)
    with as_parts(whole, router, doubled=True):
        course(s, together, seed=50).take(whole, s.bank, torch.arange(len(chosen)))
    experts = []
    for i, keep in enumerate(router.keep):
        experts.append(copy.deepcopy(expert_of(whole, router.space, keep, index=i)))
        mine = lessons_of(router, chosen, i, larger=options.larger).nonzero()[:, 0]
        if len(mine):  # one that gets no prompt stays as it is
            course(s, alone, seed=i).take(experts[i], s.bank, mine)
    return experts


def course(s: Seed, updates: int, seed: int) -> Course:
    return Course(updates=updates, batch=s.options.batch, rate=s.options.rate, seed=seed)


def measure(s: Seed, name: str) -> None:
    """Accuracy of one row of a seed, if it is not there yet."""
    if name in s.row["accuracy"]:
        return
    options = s.options
    if name == "routed":
        experts = trained_experts(s)
        tuned = AptpPipeline(s.pipe, s.owner.router, mode="finetuned", build=experts.__getitem__)
        s.judged(name, tuned.generate, s.row["router"]["share"])
        return
    pipe, network = copy.copy(s.pipe), s.network(name.removesuffix(LONG))
    updates = options.updates * (options.experts if name.endswith(LONG) else 1)
    course(s, updates, seed=50).take(network, s.bank, torch.arange(len(s.training)))
    pipe.register_modules(unet=network)
    cost = multiply_adds(pipe) / multiply_adds(s.pipe)
    s.judged(name, lambda p, **how: cd.generate(pipe, p, **how), cost)


def show(rows: Sequence[dict[str, Any]]) -> None:
    if names := [n for n in rows[0]["accuracy"] if all(n in r["accuracy"] for r in rows)]:
        print(f"\n| | multiply-adds | {' | '.join(f'{n} digits' for n in OBJECTS)} | all |")
        print("|---|" + "---|" * 5)
    for name in names:
        found = [r["accuracy"][name] for r in rows]
        cells = [f"{np.mean([f[f'{n} objects'] for f in found]):.1%}" for n in OBJECTS]
        every = [f["all"] for f in found]
        cells.append(f"{np.mean(every):.1%} ({min(every):.1%} to {max(every):.1%})")
        cost = np.mean([r["cost"][name] for r in rows])
        print(f"| {name} | {cost:.1%} | {' | '.join(cells)} |")
    for row in rows:
        for router in ("router", "no transport"):
            if router in row:
                print(f"{router}: {row[router]}")


def goals_of(rows: Sequence[dict[str, Any]], target: float) -> list[dict[str, Any]]:
    found = [r["router"] for r in rows]

    def off(share: str) -> float:
        return 100 * max(abs(a[share] / target - 1) for a in found)

    goals = [
        goal("multiply-adds off the target, held out", off("share"), 2, unit="%", at_least=False),
        goal(f"the same, {MANY:,} captions", off("share of many"), 2, unit="%", at_least=False),
        goal("the same, 95 % four digits", off("share of hard"), 2, unit="%", at_least=False),
        goal("least entropy of use over ln N", min(a["entropy"] for a in found), 0.8),
        goal("largest cosine of two codes", max(a["cosine"] for a in found), 0.95, at_least=False),
        goal("least Spearman of difficulty and cost", min(a["spearman"] for a in found), 0.5),
    ]
    names = [n for n in rows[0]["accuracy"] if n != "routed"]
    for name in names if "routed" in rows[0]["accuracy"] else ():
        both = [r["accuracy"] for r in rows if name in r["accuracy"]]
        above = float(np.mean([100 * (r["routed"]["all"] - r[name]["all"]) for r in both]))
        goals.append(goal(f"points above {name}", above, 0, unit="points"))
    return goals + speed_goals(rows[0].get("speed", {}))


def speed_goals(speed: dict[str, float]) -> list[dict[str, Any]]:
    found = []
    for name, value in speed.items():
        if name.startswith("routing"):
            found.append(goal(name, 100 * value, 1, unit="%", at_least=False))
        elif name.startswith("time"):
            found.append(goal(name, value, 1, at_least=False))
        else:
            found.append(goal(f"{name} x 1e5", 1e5 * value, 1, at_least=False))
    return found


def measured(options: Any) -> list[dict[str, Any]]:
    """Everything of all seeds; of the first one, routing without transport and speed too."""
    every = [Seed(int(seed), options) for seed in options.seeds.split(",")]
    for s in every:
        if "router" not in s.row:
            s.keep("router", about(s, s.owner.router))
        for name in filter(None, options.rows.split(",")):
            measure(s, name)
    first = every[0]
    if options.rows and not options.validate:
        if "no transport" not in first.row:
            first.keep("no transport", about(first, first.router(transport=False)))
        if "speed" not in first.row:
            first.keep("speed", speed_of(first.pipe, texts(first.wanted), GUIDANCE))
    return [s.row for s in every]


def add_options(made: Any) -> None:
    made.add_argument("--seeds", default="0,1,2", help="Which, with commas.")
    made.add_argument("--target", type=float, default=0.34, help="Share of the multiply-adds.")
    made.add_argument("--experts", type=int, default=3)
    made.add_argument("--grade", type=float, default=2.0, help="As in AptpConfig.")
    made.add_argument("--recut", default="fisher", help="As in AptpConfig; no: as learnt.")
    made.add_argument("--need", type=float, default=0.7, help="As in AptpConfig; 0: the target.")
    made.add_argument("--directions", type=int, default=1, help="As in AptpConfig; 0: all.")
    made.add_argument("--bundle", type=int, default=192, help="As in AptpConfig.")
    made.add_argument("--common", type=float, default=0.5, help="Share of updates made together.")
    made.add_argument("--larger", action="store_true", help="Experts learn from larger ones', too.")
    made.add_argument("--validate", action="store_true", help="Judge by training captions.")
    made.add_argument("--rows", default=",".join(ROWS), help="What draws; none: routers alone.")
    made.add_argument("--steps", type=int, default=2, help="Of the router's training.")
    made.add_argument("--training", type=int, default=480, help="Training captions of each seed.")
    made.add_argument("--captions", type=int, default=120, help="Held out, of each seed.")
    made.add_argument("--updates", type=int, default=120, help="Of each network; 0: as cut.")
    made.add_argument("--batch", type=int, default=16, help="Captions of an update.")
    made.add_argument("--rate", type=float, default=1e-3, help="Learning rate at its peak.")
    made.add_argument("--masks", type=Path, help="Folder of EcoDiff's masks.")
    made.add_argument("--work", type=Path, default=Path("runs/aptp"))


def wrong(options: Any) -> str:
    """What of the options nothing can be measured with, or ""."""
    if strangers := [n for n in options.rows.split(",") if n and n not in ROWS]:
        return f"--rows {strangers[0]!r} is unknown: choose from {', '.join(ROWS)}"
    if not all(seed.isdecimal() for seed in options.seeds.split(",")):
        return f"--seeds {options.seeds!r}: give whole numbers with commas"
    if options.masks is not None and not options.masks.is_dir():
        return f"--masks {options.masks} is no folder"
    return ""


def main() -> None:
    made = parser(__doc__)
    add_options(made)
    options = made.parse_args()
    if said := wrong(options):
        made.error(said)
    torch.set_num_threads(1)
    if options.quick:
        options.seeds, options.steps, options.training, options.captions = "0", 2, 24, 12
        options.updates, options.batch, options.work = 4, 4, options.work / f"{time.time():.0f}"
        options.rows = f"routed,magnitude,magnitude{LONG}"  # learning masks takes minutes
    try:
        rows = measured(options)
    except Compress3GError as error:
        made.error(str(error))
    show(rows)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    asked = {k: v for k, v in vars(options).items() if k not in ("quick", "json", "seeds", "rows")}
    report(
        f"aptp_{options.target:g}{kind_of_run(options)}{'' if options.rows else '_routers'}",
        options, seeds=seeds,
        goals=goals_of(rows, options.target),
        rows={f"seed {i}": r for i, r in zip(seeds, rows, strict=True)},
        **{k: v for k, v in asked.items() if not isinstance(v, Path)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
