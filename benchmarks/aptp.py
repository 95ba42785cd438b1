"""Does a router that sends prompts to networks of several sizes beat one network of the mean size?

    python benchmarks/aptp.py [--quick] [--json] [--seeds N] [--target SHARE] [--work FOLDER]

The denoiser of pipelines/digits_t2i is to keep a share of its multiply-adds on average. Captions
name one, two or four digits, and nobody tells the router so. Training captions train the router,
and afterwards its experts; single networks of the same mean cost (magnitude, EcoDiff, a router with
one code) get as many updates as each expert. Experts are trained twice: on whole batches of their
own captions, as in the paper, and on their share of one network's batches, so that together they
see no more. The score is the share of held-out captions whose image is right in every digit and
colour. What is finished stays in --work.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _digits import Classifier, Scene, correct, draw, scenes
from _report import goal, parser, report
from _routing import over_a_large_step
from scipy.stats import spearmanr
from torch import Tensor
from train_digits import MEAN, SCALE

import compress3g.diffusion as cd
from compress3g.diffusion.aptp import AptpConfig, AptpPipeline, Router, train_router
from compress3g.diffusion.aptp.codes import skeleton_space
from compress3g.diffusion.aptp.corpus import Corpus
from compress3g.diffusion.aptp.finetune import finetune_experts
from compress3g.diffusion.finetune import FinetuneConfig, finetune
from compress3g.diffusion.pipelines import recording
from compress3g.engine.checkpoint import write_json
from compress3g.profile import compare, count_flops

MODEL = Path(__file__).parent.parent / "pipelines" / "digits_t2i"
OBJECTS = (1, 2, 4)
STEPS, GUIDANCE = 12, 3.0
# Chosen in a few tries of seed 0 on training captions; the grade after a first router's held-out
# figures were seen.
ROUTER = AptpConfig(
    experts=4, depth=False, start="graded", steps=40, batch=24, learning_rate=0.06, distill=5.0,
    blocks=1.0, resource=20.0, inference_steps=STEPS,
)  # fmt: skip
# Each expert's call has a fixed cost, which four small calls pay four times.
MIXED = (7, 24)
STATIC = ("magnitude", "ecodiff")


def captions_of(count: int, seed: int, *, held_out: bool, shares: Sequence[float]) -> list[Scene]:
    """Scenes of one, two and four digits in these shares, in random order."""
    noise = np.random.default_rng(seed)
    drawn = [
        s
        for n, share in zip(OBJECTS, shares, strict=True)
        for s in scenes(n, round(count * share), noise, held_out=held_out)
    ]
    return [drawn[i] for i in noise.permutation(len(drawn))]


def texts(wanted: Sequence[Scene]) -> list[str]:
    return [s.caption for s in wanted]


class Seed:
    """Everything of one seed: captions, the dense pipeline, what has been measured."""

    def __init__(self, seed: int, options: Any) -> None:
        self.seed, self.quick = seed, options.quick
        how = (options.target, options.updates, options.training, options.captions)
        self.folder = options.work / "-".join(f"{x:g}" for x in how) / f"seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / "rows.json"
        self.rows: dict[str, Any] = (
            json.loads(self._file.read_text()) if self._file.exists() else {}
        )
        self.pipe = cd.open_pipeline(MODEL)
        self.judge = Classifier.load(MODEL / "classifier.safetensors")
        even = (1 / 3, 1 / 3, 1 / 3)
        many = 32 if options.quick else options.training
        self.training = captions_of(many, 100 + seed, held_out=False, shares=even)
        count = 24 if options.quick else options.captions
        self.wanted = captions_of(count, seed, held_out=True, shares=even)
        # A budget is a mean: to know it to a hundredth takes more captions than are drawn.
        many = 120 if options.quick else 3000
        self.many = captions_of(many, 7000 + seed, held_out=True, shares=even)
        self.hard = captions_of(count, 50 + seed, held_out=True, shares=(0.025, 0.025, 0.95))
        self.config = replace(ROUTER, target=options.target, seed=seed)
        self.updates = options.updates
        self.singles = list(STATIC[:1]) if options.quick else options.singles.split(",")
        if options.quick:
            fast = replace(self.config, steps=4, batch=8)
            self.config, self.updates = fast, 4
        noise = np.random.default_rng(seed)
        latents = (draw(self.training, noise) - MEAN) / SCALE
        self.corpus = Corpus.of(self.pipe, texts(self.training), latents=latents, steps=STEPS)

    def keep(self, name: str, row: dict[str, Any]) -> dict[str, Any]:
        self.rows[name] = row
        write_json(self._file, self.rows)
        return row

    def router(self, **changes: Any) -> Router:
        """Trained with changes to the configuration, or from before."""
        config = replace(self.config, **changes)
        name = "-".join(["router", *(f"{k}{v}" for k, v in changes.items())])
        file = self.folder / f"{name}.safetensors"
        if not file.exists():
            began = time.process_time()
            trained = train_router(self.corpus, config, checkpoint=file.with_suffix(".checkpoint"))
            self.keep(name, {"seconds": time.process_time() - began})
            trained.save(file)
            file.with_suffix(".checkpoint").unlink()
        return Router.load(file, *skeleton_space(self.pipe.unet, vars_of(config)))

    def finetuning(self) -> FinetuneConfig:
        return FinetuneConfig(
            method="full", updates=self.updates, batch=8, learning_rate=3e-4, steps=STEPS,
            guidance=GUIDANCE, seed=self.seed,
        )  # fmt: skip

    @property
    def cache(self) -> Path:
        return self.folder / "dense"

    def judged(self, images: Tensor, wanted: Sequence[Scene]) -> dict[str, float]:
        right = correct(images, wanted, self.judge).float()
        counts = torch.tensor([len(s.objects) for s in wanted])
        row = {f"{n} objects": float(right[counts == n].mean()) for n in OBJECTS}
        return {**row, "all": float(right.mean())}

    def drawn(self, make: Any, wanted: Sequence[Scene]) -> Tensor:
        """Images, 60 at a time."""
        parts = []
        for first in range(0, len(wanted), 60):
            how = {"seed": self.seed * 100_000 + first, "steps": STEPS, "guidance": GUIDANCE}
            parts.append(make(texts(wanted[first : first + 60]), **how))
        return torch.cat(parts)

    def single(self, pipe: Any) -> dict[str, float]:
        images = self.drawn(lambda p, **how: cd.generate(pipe, p, **how), self.wanted)
        return self.judged(images, self.wanted)


def vars_of(config: AptpConfig) -> dict[str, Any]:
    return {"bundle": config.bundle, "depth": config.depth}


def multiply_adds(pipe: Any) -> int:
    with recording(pipe) as calls:
        cd.generate(pipe, ["a red seven"], steps=2, guidance=1.0, output="latent")
    return count_flops(lambda: calls[0].run(cd.denoiser_of(pipe)[1])).total


def static(s: Seed, method: str, share: float) -> Any:
    """The pipeline, pruned by a method to this share of its multiply-adds, or a little more.

    What attention does between its projections goes unasked with its heads; so more is asked for
    until no less than this share is left.
    """
    config = cd.PruneConfig(
        method=method, ratio=1 - share, cost="flops", steps=STEPS, guidance=GUIDANCE, samples=48,
        round_to=1, updates=4 if s.quick else 60, seed=s.seed,
    )  # fmt: skip
    scores = cd.scores_of(s.pipe, texts(s.training), config)
    whole = multiply_adds(s.pipe)
    for more in range(10):
        how = {**config.how(), "ratio": 1 - share - 0.01 * more}
        pipe = cd.prune(copy.deepcopy(s.pipe), scores, **how)
        if multiply_adds(pipe) / whole >= share - 0.005:
            break
    return pipe


def measure_router(s: Seed, name: str, **changes: Any) -> dict[str, Any]:
    """What a router does with captions, without drawing."""
    if name in s.rows:
        return s.rows[name]
    owner = AptpPipeline(s.pipe, s.router(**changes))
    router, routed = owner.router, owner.route(texts(s.wanted))
    difficulty = [len(x.objects) for x in s.wanted]
    row = {
        "share": float(routed.shares.mean()),
        "entropy": router.entropy(routed.experts),
        "likeness": router.likeness(),
        "smallest": float(router.shares.min()),
        "largest": float(router.shares.max()),
        "used": len(routed.experts.unique()),
    }
    for n in OBJECTS:
        mine = torch.tensor([d == n for d in difficulty])
        row[f"share of {n}"] = float(routed.shares[mine].mean())
    varies = len(routed.shares.unique()) > 1
    row["spearman"] = float(spearmanr(difficulty, routed.shares)[0]) if varies else 0.0
    row["share of many"] = float(owner.route(texts(s.many)).shares.mean())
    owner.rebalance(texts(s.hard))
    row["share of hard"] = float(owner.route(texts(s.hard)).shares.mean())
    return s.keep(name, row)


def measure_quality(s: Seed) -> None:
    """Accuracy of the routed pipeline and of one code, before and after finetuning."""
    owner = AptpPipeline(s.pipe, s.router())
    share = float(owner.route(texts(s.wanted)).shares.mean())
    if "dense" not in s.rows:
        s.keep("dense", {**s.single(s.pipe), "share": 1.0})
    if "aptp" not in s.rows:
        row = s.judged(s.drawn(owner.generate, s.wanted), s.wanted)
        s.keep("aptp", {**row, "share": share})
    # The other way of counting on the first seed alone.
    ways = {"aptp, finetuned": True, "aptp, finetuned, shares": False}
    for name, whole_batches in ways.items():
        if name in s.rows or (s.seed and not whole_batches):
            continue
        tuned = finetune_experts(
            owner, texts(s.training), s.finetuning(), whole_batches=whole_batches, cache=s.cache
        )
        row = s.judged(s.drawn(tuned.generate, s.wanted), s.wanted)
        s.keep(name, {**row, "share": share})
    one = AptpPipeline(s.pipe, s.router(experts=1))
    if "one code, finetuned" not in s.rows:
        alone = {"share": float(one.router.shares[0])}
        s.keep("one code", {**s.judged(s.drawn(one.generate, s.wanted), s.wanted), **alone})
        tuned = finetune_experts(one, texts(s.training), s.finetuning(), cache=s.cache)
        row = s.judged(s.drawn(tuned.generate, s.wanted), s.wanted)
        s.keep("one code, finetuned", {**row, **alone})


def measure_single(s: Seed, method: str) -> None:
    """Accuracy of one network of the mean size, before and after finetuning."""
    if f"{method}, finetuned" in s.rows:
        return
    pipe = static(s, method, s.rows["aptp"]["share"])
    cost = {"share": multiply_adds(pipe) / multiply_adds(s.pipe)}
    s.keep(method, {**s.single(pipe), **cost})
    finetune(pipe, s.pipe, texts(s.training), s.finetuning(), cache=s.cache)
    s.keep(f"{method}, finetuned", {**s.single(pipe), **cost})


def measure_speed(s: Seed) -> dict[str, float]:
    """Routing against a denoising step; a mixed batch against the dense pipeline; 7 against 1."""
    if "speed" in s.rows:
        return s.rows["speed"]
    owner = AptpPipeline(s.pipe, s.router())
    prompts = texts(s.wanted)[:7]
    with recording(s.pipe) as calls:
        cd.generate(s.pipe, prompts, steps=2, guidance=GUIDANCE, output="latent")
    embeddings = owner.embed(prompts)
    how: dict[str, Any] = {"seed": 0, "steps": 4, "guidance": GUIDANCE}
    with torch.inference_mode():
        step = compare(
            lambda: calls[0].run(s.pipe.unet), lambda: owner.router.route(embeddings),
            seconds=4.0, clock="cpu",
        )  # fmt: skip

    def mixed(count: int) -> float:
        many = texts(s.wanted)[:count]
        return compare(
            lambda: cd.generate(s.pipe, many, **how), lambda: owner.generate(many, **how),
            seconds=4.0, clock="cpu",
        ).median  # fmt: skip

    together = owner.generate(prompts, **how)
    alone = [owner.generate([p], **{**how, "seed": i})[0] for i, p in enumerate(prompts)]
    worst = float((together - torch.stack(alone)).abs().max())
    row = {
        "routing over a step": step.median,
        **{f"time of a mixed batch of {n} over dense": mixed(n) for n in MIXED},
        "batch against single": worst,
    }
    if not s.quick:
        row["routing over a step of 866 million parameters"] = over_a_large_step(ROUTER)
    return s.keep("speed", row)


def mean(rows: list[dict[str, Any]], name: str, of: str = "all") -> float:
    found = [r[name][of] for r in rows if name in r]
    return sum(found) / len(found)


def show(rows: list[dict[str, Any]]) -> None:
    names = [n for n in rows[0] if "all" in rows[0][n]]
    print(f"\n| | multiply-adds | {' | '.join(f'{n} digits' for n in OBJECTS)} | all |")
    print("|---|" + "---|" * 5)
    for name in names:
        cells = [f"{mean(rows, name, f'{n} objects'):.1%}" for n in OBJECTS]
        spread = [r[name]["all"] for r in rows if name in r]
        cells.append(f"{mean(rows, name):.1%} ({min(spread):.1%} to {max(spread):.1%})")
        print(f"| {name} | {mean(rows, name, 'share'):.1%} | {' | '.join(cells)} |")
    for name in ("router", "no transport"):
        row = {k: mean(rows, f"about {name}", k) for k in rows[0][f"about {name}"]}
        print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()))


def router_goals(rows: list[dict[str, Any]], target: float) -> list[dict[str, Any]]:
    about = [r["about router"] for r in rows]
    off = max(abs(a["share"] / target - 1) for a in about)
    many = max(abs(a["share of many"] / target - 1) for a in about)
    hard = max(abs(a["share of hard"] / target - 1) for a in about)
    return [
        goal("multiply-adds off the target, held out", 100 * off, 2, unit="%", at_least=False),
        goal("the same, 3,000 captions", 100 * many, 2, unit="%", at_least=False),
        goal("the same, 95 % four digits", 100 * hard, 2, unit="%", at_least=False),
        goal("least entropy of use over ln N", min(a["entropy"] for a in about), 0.8),
        goal("largest cosine of two codes", max(a["likeness"] for a in about), 0.95,
             at_least=False),
        goal("least Spearman of difficulty and cost", min(a["spearman"] for a in about), 0.5),
    ]  # fmt: skip


def goals_of(rows: list[dict[str, Any]], target: float) -> list[dict[str, Any]]:
    singles = [f"{m}, finetuned" for m in STATIC if f"{m}, finetuned" in rows[0]]

    def above(single: str) -> float:
        """On the seeds that both were measured on."""
        both = [r for r in rows if single in r]
        return 100 * (mean(both, "aptp, finetuned") - mean(both, single))

    speed = [r["speed"] for r in rows if "speed" in r]
    goals = [
        *router_goals(rows, target),
        *(goal(f"points above {name}", above(name), 0, unit="points")
          for name in (*singles, "one code, finetuned")),
    ]  # fmt: skip
    goals += [
        *(
            goal(name, 100 * speed[0][name], 1, unit="%", at_least=False)
            for name in speed[0] if name.startswith("routing over a step")
        ),
        goal("batch of 7 against single calls", speed[0]["batch against single"], 1e-5,
             at_least=False),
        *(
            goal(name, value, 1, at_least=False)
            for name, value in speed[0].items() if name.startswith("time of a mixed batch")
        ),
    ]  # fmt: skip
    return goals


def report_routers(rows: list[dict[str, Any]], options: Any) -> None:
    about = {f"seed {i}": r["about router"] for i, r in enumerate(rows)}
    for name, row in about.items():
        print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()))
    report(
        "aptp_routers", options, seeds=list(range(options.seeds)), rows=about,
        goals=router_goals(rows, options.target), training=options.training, target=options.target,
    )  # fmt: skip


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--captions", type=int, default=150, help="Held out, of each seed.")
    made.add_argument("--training", type=int, default=300, help="Training captions of each seed.")
    made.add_argument("--target", type=float, default=0.5, help="Share of the cost that stays.")
    made.add_argument("--updates", type=int, default=120, help="Of finetuning, 8 captions each.")
    made.add_argument("--singles", default=",".join(STATIC), help="Single networks to prune.")
    made.add_argument("--work", type=Path, default=Path("runs/aptp"), help="What is finished.")
    made.add_argument("--routers", action="store_true", help="Their figures alone; draw nothing.")
    options = made.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.seeds, options.work = 1, options.work / f"quick{time.time():.0f}"
    seeds = [Seed(seed, options) for seed in range(options.seeds)]
    for s in seeds:
        measure_router(s, "about router")
    if options.routers:
        report_routers([s.rows for s in seeds], options)
        return
    for s in seeds:
        measure_quality(s)
        for method in s.singles:
            measure_single(s, method)
    first = seeds[0]
    measure_router(first, "about no transport", transport=False)
    measure_speed(first)
    rows = [s.rows for s in seeds]
    show(rows)
    report(
        "aptp", options, seeds=list(range(options.seeds)), goals=goals_of(rows, options.target),
        rows={f"seed {i}": r for i, r in enumerate(rows)}, captions=options.captions,
        training=options.training, updates=options.updates, target=options.target,
    )  # fmt: skip


if __name__ == "__main__":
    main()
