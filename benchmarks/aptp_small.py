"""Does a router beat one network of the same mean size where a network cannot hold everything?

    python benchmarks/aptp_small.py [--quick] [--json] [--seeds 0,1,2] [--target .34] [--masks PATH]

As aptp.py, at a third of the multiply-adds, where one network after as many updates
fails at four digits. Networks cut so far answer nothing right before they have learnt, and no
caption is told from another: the router measures need at `--need`. Codes are cut again for their
own captions, by `--recut`, the one code of "one code" too. Then every network has
`--updates` of `--batch` captions at the times of the sampler, by the loss of `route finetune`.
Experts make the share `--common` of all their updates together, as parts of one network, and the
others each from the captions that are routed to it (with `--larger`, to larger ones too); single
networks learn from all. Those of magnitude and of one code are trained a second time,
for as many updates as all experts together. `--masks` is a folder of ecodiffSEED.safetensors, the
logits of EcoDiff's masks; they are learnt where there are none. `--validate` judges by other
training captions and not by held-out ones: by them settings are chosen. What is finished stays in
--work.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _digits import Classifier, correct, draw
from _report import goal, parser, report
from aptp import GUIDANCE, MODEL, OBJECTS, ROUTER, STEPS, captions_of, multiply_adds, texts
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Tensor, nn
from train_digits import MEAN, SCALE

import compress3g.diffusion as cd
from compress3g.diffusion.aptp import AptpPipeline, Router, train_router
from compress3g.diffusion.aptp.corpus import Corpus
from compress3g.diffusion.aptp.experts import expert_of
from compress3g.diffusion.aptp.finetune import as_parts, lessons_of
from compress3g.diffusion.calibration import noised_at
from compress3g.diffusion.sampling import Replay
from compress3g.engine.checkpoint import write_json
from compress3g.errors import BudgetError

EVEN = (1 / 3, 1 / 3, 1 / 3)
LONG = " as long as all experts"
ROWS = ("routed", "magnitude", "magnitude" + LONG, "ecodiff", "one code", "one code" + LONG)
# What else tells one run from another.
SETTINGS = (
    "target", "grade", "experts", "updates", "training", "need", "directions", "bundle", "steps",
    "captions", "batch", "rate",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bank:
    """Noised images of the dense network, and its answers with and without the caption.

    Rows: (time, caption), the last one fastest; text: of each caption, and of none at the end.
    """

    noised: Tensor
    times: Tensor
    without: Tensor
    told: Tensor
    text: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, pipe: Any, captions: Sequence[str], seed: int) -> Bank:
        call = {"guidance_scale": GUIDANCE}
        replay = Replay.of(pipe, captions, steps=STEPS, seed=seed, call=call)
        last, scheduler, count = replay.run(), replay.scheduler, len(captions)
        noise = torch.Generator().manual_seed(seed)
        kept: list[list[Tensor]] = [[], [], [], []]
        for t in scheduler.timesteps:
            noised = noised_at(scheduler, last, torch.randn(last.shape, generator=noise), t)
            answer = replay.denoiser(**replay.inputs(noised, t), return_dict=False)[0]
            for place, value in zip(
                kept, (noised, t.float().expand(count), *answer.chunk(2)), strict=True
            ):
                place.append(value)
        text = replay.arguments["encoder_hidden_states"]
        return cls(*map(torch.cat, kept), torch.cat([text[count:], text[:1]]))

    def loss(self, network: nn.Module, captions: Tensor, generator: torch.Generator) -> Tensor:
        """Distance to the dense answers over their mean square, each row at a time of its own."""
        count = len(self.text) - 1
        step = torch.randint(len(self.times) // count, captions.shape, generator=generator)
        rows = step * count + captions
        x, times, told = self.noised[rows], self.times[rows], self.text[captions]
        wanted = torch.cat([self.without[rows], self.told[rows]])
        out = network(
            torch.cat([x, x]), torch.cat([times, times]), return_dict=False,
            encoder_hidden_states=torch.cat([self.text[-1:].expand_as(told), told]),
        )[0]  # fmt: skip
        return (out - wanted).square().mean() / wanted.square().mean()


def learn(
    network: nn.Module, bank: Bank, captions: Tensor, options: Any, *, updates: int, seed: int
) -> None:
    """Adam, its rate up over a twentieth of the updates and down along half a cosine."""
    network.requires_grad_(True)
    adam = torch.optim.Adam(network.parameters(), lr=options.rate)
    generator = torch.Generator().manual_seed(seed)
    for i in range(updates):
        drawn = captions[torch.randint(len(captions), (options.batch,), generator=generator)]
        adam.zero_grad()
        bank.loss(network, drawn, generator).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        share = (i + 1) / updates
        adam.param_groups[0]["lr"] = (
            options.rate * min(1.0, 20 * share) * 0.5 * (1 + math.cos(math.pi * share))
        )
        adam.step()
    network.requires_grad_(False)


class Seed:
    """Captions, the dense pipeline, and what has been measured of one seed."""

    def __init__(self, seed: int, options: Any) -> None:
        self.seed, self.options = seed, options
        name = "-".join(f"{getattr(options, x):g}" for x in SETTINGS) + kind_of_run(options)
        folder = options.work / name
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"{seed}.json"
        self.row: dict[str, Any] = {"accuracy": {}, "cost": {}}
        if self._file.exists():
            self.row = json.loads(self._file.read_text())
        self.pipe = cd.open_pipeline(MODEL)
        self.judge = Classifier.load(MODEL / "classifier.safetensors")
        self.training = captions_of(options.training, 100 + seed, held_out=False, shares=EVEN)
        held_out = not options.validate
        place = seed if held_out else 200 + seed
        self.wanted = captions_of(options.captions, place, held_out=held_out, shares=EVEN)
        latents = (draw(self.training, np.random.default_rng(seed)) - MEAN) / SCALE
        self.corpus = Corpus.of(self.pipe, texts(self.training), latents=latents, steps=STEPS)

    @cached_property
    def bank(self) -> Bank:
        """Made once for all runs with these training captions."""
        file = self.options.work / f"bank-{self.options.training}-{self.seed}.safetensors"
        if not file.exists():
            made = Bank.of(self.pipe, texts(self.training), self.seed)
            save_file({f.name: getattr(made, f.name) for f in fields(Bank)}, file)
        return Bank(**load_file(file))

    @cached_property
    def owner(self) -> AptpPipeline:
        return AptpPipeline(self.pipe, self.router(self.options.experts))

    def network(self, name: str) -> Any:
        """A single network before it learns, of no less than what the router's cost on average."""
        if name == "one code":
            return copy.deepcopy(AptpPipeline(self.pipe, self.router(1)).expert(0))
        share = max(self.options.target, float(self.row["router"]["share"]))
        if name == "ecodiff":
            return self.single(self.masks(), share)
        config = cd.PruneConfig(method="magnitude", cost="flops")
        return self.single(cd.scores_of(self.pipe, (), config), share)

    def router(self, experts: int) -> Router:
        options = self.options
        config = replace(
            ROUTER, experts=experts, target=options.target, grade=options.grade,
            need=options.need, directions=options.directions or None, steps=options.steps,
            recut=None if options.recut == "no" else options.recut, bundle=options.bundle,
            seed=self.seed,
        )  # fmt: skip
        return train_router(self.corpus, config)

    def single(self, scores: Any, share: float) -> Any:
        """The denoiser without the units that score least, of no less than a share of its cost.

        What attention does between its projections goes unasked with its heads.
        """
        whole, asked = multiply_adds(self.pipe), 1 - share
        while True:
            try:
                pipe = cd.prune(
                    copy.deepcopy(self.pipe), scores, ratio=asked, cost="flops", round_to=1
                )
                if multiply_adds(pipe) / whole >= share:
                    return pipe.unet
            except BudgetError:
                pass  # more than its projections alone could give
            asked -= 0.004

    def masks(self) -> Any:
        """What EcoDiff learns for this budget, or from before."""
        folder = self.options.masks or self._file.parent
        file = folder / f"ecodiff{self.seed}.safetensors"
        if not file.exists():
            config = cd.PruneConfig(
                method="ecodiff", ratio=1 - self.options.target, cost="flops", steps=STEPS,
                guidance=GUIDANCE, samples=48, round_to=1, updates=60, seed=self.seed,
            )  # fmt: skip
            learnt = cd.scores_of(self.pipe, texts(self.training), config)
            save_file({n: v.detach().contiguous() for n, v in learnt.logits.items()}, file)
        return load_file(file)

    def judged(self, name: str, make: Any, cost: float) -> None:
        """Accuracy on the held-out captions, kept with what it costs."""
        how = {"seed": self.seed * 100_000, "steps": STEPS, "guidance": GUIDANCE}
        right = correct(make(texts(self.wanted), **how), self.wanted, self.judge).float()
        counts = torch.tensor([len(s.objects) for s in self.wanted])
        row = {f"{n} objects": float(right[counts == n].mean()) for n in OBJECTS}
        self.row["accuracy"][name] = {**row, "all": float(right.mean())}
        self.row["cost"][name] = cost
        write_json(self._file, self.row)
        print(f"seed {self.seed}: {name} ({cost:.3f}): {self.row['accuracy'][name]}", flush=True)


def about(s: Seed, owner: AptpPipeline) -> dict[str, Any]:
    """What the router does with the held-out captions."""
    routed, counts = owner.route(texts(s.wanted)), [len(x.objects) for x in s.wanted]
    kinds = torch.tensor(counts)
    return {
        "shares": owner.router.shares.tolist(),
        "cosine": owner.router.likeness(),
        "share": float(routed.shares.mean()),
        "entropy": owner.router.entropy(routed.experts),
        "spearman": float(spearmanr(counts, routed.shares)[0]),
        "by count": {str(n): float(routed.shares[kinds == n].mean()) for n in OBJECTS},
    }


def kind_of_run(options: Any) -> str:
    """What tells a run from the default in the names of its files."""
    recut = "" if options.recut == "no" else f"_{options.recut}"
    common = f"_common_{options.common:g}" if options.common else ""
    return recut + common + "_larger" * options.larger + "_validation" * options.validate


def trained_experts(s: Seed) -> list[nn.Module]:
    """Of `--updates` each: together for the share `--common` of all of them, then on its own."""
    options, router = s.options, s.owner.router
    chosen = s.owner.route(texts(s.training)).experts
    together = round(options.updates * options.experts * options.common)
    alone = round(options.updates * (1 - options.common))
    whole = copy.deepcopy(s.pipe.unet)
    with as_parts(whole, router, doubled=True):
        learn(whole, s.bank, torch.arange(len(chosen)), options, updates=together, seed=50)
    experts = []
    for i, keep in enumerate(router.keep):
        experts.append(copy.deepcopy(expert_of(whole, router.space, keep, index=i)))
        mine = lessons_of(router, chosen, i, larger=options.larger).nonzero()[:, 0]
        if len(mine):  # one that gets no prompt stays as it is
            learn(experts[i], s.bank, mine, options, updates=alone, seed=i)
    return experts


def measure(s: Seed, name: str) -> None:
    """One row of a seed, if it is not there yet."""
    if name in s.row["accuracy"]:
        return
    options = s.options
    if name == "routed":
        experts = trained_experts(s)
        tuned = AptpPipeline(s.pipe, s.owner.router, mode="finetuned", build=experts.__getitem__)
        s.row["router"] = about(s, s.owner)
        s.judged(name, tuned.generate, s.row["router"]["share"])
        return
    pipe, network = copy.copy(s.pipe), s.network(name.removesuffix(LONG))
    updates = options.updates * (options.experts if name.endswith(LONG) else 1)
    learn(network, s.bank, torch.arange(len(s.training)), options, updates=updates, seed=50)
    pipe.register_modules(unet=network)
    cost = multiply_adds(pipe) / multiply_adds(s.pipe)
    s.judged(name, lambda p, **how: cd.generate(pipe, p, **how), cost)


def show(rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n| | multiply-adds | {' | '.join(f'{n} digits' for n in OBJECTS)} | all |")
    print("|---|" + "---|" * 5)
    for name in rows[0]["accuracy"]:
        found = [r["accuracy"][name] for r in rows]
        cells = [f"{np.mean([f[f'{n} objects'] for f in found]):.1%}" for n in OBJECTS]
        every = [f["all"] for f in found]
        cells.append(f"{np.mean(every):.1%} ({min(every):.1%} to {max(every):.1%})")
        cost = np.mean([r["cost"][name] for r in rows])
        print(f"| {name} | {cost:.1%} | {' | '.join(cells)} |")


def goals_of(rows: Sequence[dict[str, Any]], target: float) -> list[dict[str, Any]]:
    def mean(name: str) -> float:
        return float(np.mean([r["accuracy"][name]["all"] for r in rows]))

    about = [r["router"] for r in rows]
    off = max(abs(a["share"] / target - 1) for a in about)
    return [
        *(
            goal(f"points above {name}", 100 * (mean("routed") - mean(name)), 0, unit="points")
            for name in rows[0]["accuracy"] if name != "routed"
        ),
        goal("multiply-adds off the target, held out", 100 * off, 2, unit="%", at_least=False),
        goal("least entropy of use over ln N", min(a["entropy"] for a in about), 0.8),
        goal("largest cosine of two codes", max(a["cosine"] for a in about), 0.95, at_least=False),
        goal("least Spearman of difficulty and cost", min(a["spearman"] for a in about), 0.5),
    ]  # fmt: skip


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--seeds", default="0,1,2", help="Which, with commas.")
    made.add_argument("--target", type=float, default=0.34, help="Share of the multiply-adds.")
    made.add_argument("--experts", type=int, default=3)
    made.add_argument("--grade", type=float, default=2.0, help="As in AptpConfig.")
    made.add_argument("--recut", default="fisher", help="As in AptpConfig; no: as learnt.")
    made.add_argument("--need", type=float, default=0.7, help="As in AptpConfig.")
    made.add_argument("--directions", type=int, default=1, help="As in AptpConfig; 0: all.")
    made.add_argument("--bundle", type=int, default=192, help="As in AptpConfig.")
    made.add_argument("--common", type=float, default=0.5, help="Share of updates made together.")
    made.add_argument("--larger", action="store_true", help="Experts learn from larger ones', too.")
    made.add_argument("--validate", action="store_true", help="Judge by training captions.")
    made.add_argument("--rows", default=",".join(ROWS), help="Which to measure, with commas.")
    made.add_argument("--steps", type=int, default=2, help="Of the router's training.")
    made.add_argument("--training", type=int, default=480, help="Training captions of each seed.")
    made.add_argument("--captions", type=int, default=120, help="Held out, of each seed.")
    made.add_argument("--updates", type=int, default=120, help="Of each network.")
    made.add_argument("--batch", type=int, default=16, help="Captions of an update.")
    made.add_argument("--rate", type=float, default=1e-3, help="Learning rate at its peak.")
    made.add_argument("--masks", type=Path, help="Folder of EcoDiff's masks.")
    made.add_argument("--work", type=Path, default=Path("runs/aptp_small"))
    options = made.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.seeds, options.steps, options.training, options.captions = "0", 2, 24, 12
        options.updates, options.batch, options.work = 4, 4, options.work / f"{time.time():.0f}"
        options.rows = f"routed,magnitude,magnitude{LONG}"  # learning masks takes minutes
    seeds = [int(x) for x in options.seeds.split(",")]
    every = [Seed(seed, options) for seed in seeds]
    for s in every:
        for name in options.rows.split(","):
            measure(s, name)
    rows = [s.row for s in every]
    show(rows)
    report(
        f"aptp_small_{options.target:g}{kind_of_run(options)}", options, seeds=seeds,
        goals=goals_of(rows, options.target), larger=options.larger, recut=options.recut,
        rows={f"seed {i}": r for i, r in zip(seeds, rows, strict=True)},
        target=options.target, experts=options.experts, grade=options.grade, need=options.need,
        common=options.common, training=options.training, captions=options.captions,
        updates=options.updates, batch=options.batch,
    )  # fmt: skip


if __name__ == "__main__":
    main()
