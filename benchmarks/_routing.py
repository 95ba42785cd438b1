"""One seed of benchmarks/aptp.py: captions, the dense pipeline, a router, networks of one size."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _digits import Classifier, Scene, correct, draw, scenes
from _routing_bank import Bank
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_digits import MEAN, SCALE

import compress3g.diffusion as cd
from compress3g.diffusion.aptp import AptpConfig, AptpPipeline, Router, train_router
from compress3g.diffusion.aptp.codes import skeleton_space
from compress3g.diffusion.aptp.corpus import Corpus
from compress3g.diffusion.pipelines import recording
from compress3g.engine.checkpoint import write_json
from compress3g.errors import BudgetError
from compress3g.profile import count_flops

MODEL = Path(__file__).parent.parent / "pipelines" / "digits_t2i"
OBJECTS = (1, 2, 4)
EVEN, HARD = (1 / 3, 1 / 3, 1 / 3), (0.025, 0.025, 0.95)
STEPS, GUIDANCE = 12, 3.0
# What a few steps of training need; a run's options say the rest.
ROUTER = AptpConfig(
    depth=False, start="graded", batch=24, learning_rate=0.06, distill=5.0, blocks=1.0,
    resource=20.0, inference_steps=STEPS,
)  # fmt: skip
# What else tells one run from another.
SETTINGS = (
    "target", "grade", "experts", "updates", "training", "need", "directions", "bundle", "steps",
    "captions", "batch", "rate",
)  # fmt: skip


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


def multiply_adds(pipe: Any) -> int:
    """Of one call of the pipeline's denoiser."""
    with recording(pipe) as calls:
        cd.generate(pipe, ["a red seven"], steps=2, guidance=1.0, output="latent")
    return count_flops(lambda: calls[0].run(cd.denoiser_of(pipe)[1])).total


def kind_of_run(options: Any) -> str:
    """What tells a run from others in the names of its files."""
    recut = "" if options.recut == "no" else f"_{options.recut}"
    common = f"_common_{options.common:g}" if options.common else ""
    return recut + common + "_larger" * options.larger + "_validation" * options.validate


class Seed:
    """Captions, the dense pipeline, and what has been measured of one seed."""

    def __init__(self, seed: int, options: Any) -> None:
        self.seed, self.options = seed, options
        name = "-".join(f"{getattr(options, x):g}" for x in SETTINGS) + kind_of_run(options)
        self.folder = options.work / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / f"{seed}.json"
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

    def keep(self, name: str, row: Any) -> Any:
        """The row, written down."""
        self.row[name] = row
        write_json(self._file, self.row)
        return row

    @cached_property
    def bank(self) -> Bank:
        """Made once for all runs with these training captions."""
        file = self.options.work / f"bank-{self.options.training}-{self.seed}.safetensors"
        if not file.exists():
            made = Bank.of(self.pipe, texts(self.training), self.seed, STEPS, GUIDANCE)
            save_file({f.name: getattr(made, f.name) for f in fields(Bank)}, file)
        return Bank(**load_file(file))

    def router(self, experts: int | None = None, *, transport: bool = True) -> Router:
        """Trained, or from before."""
        options, name = self.options, f"router{self.seed}-{experts}{'-free' * (not transport)}"
        config = replace(
            ROUTER, experts=experts or options.experts, target=options.target, grade=options.grade,
            need=options.need or None, directions=options.directions or None, seed=self.seed,
            steps=options.steps, bundle=options.bundle, transport=transport,
            recut=None if options.recut == "no" else options.recut,
        )  # fmt: skip
        file = self.folder / f"{name}.safetensors"
        if not file.exists():
            train_router(self.corpus, config).save(file)
        space = {"bundle": config.bundle, "depth": config.depth}
        return Router.load(file, *skeleton_space(self.pipe.unet, space))

    @cached_property
    def owner(self) -> AptpPipeline:
        """The routed pipeline, whose experts are parts of the dense network."""
        return AptpPipeline(self.pipe, self.router())

    def network(self, name: str) -> Any:
        """A single network before it learns, of no less than what the router's cost on average."""
        if name == "one code":
            return copy.deepcopy(AptpPipeline(self.pipe, self.router(1)).expert(0))
        share = max(self.options.target, float(self.row["router"]["share"]))
        if name == "ecodiff":
            return self._single(self._masks(), share)
        config = cd.PruneConfig(method="magnitude", cost="flops")
        return self._single(cd.scores_of(self.pipe, (), config), share)

    def _single(self, scores: Any, share: float) -> Any:
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

    def _masks(self) -> Any:
        """What EcoDiff learns for this budget, or from before.

        Logits start in the order of Taylor's scores: of four ways the best on training captions.
        """
        options = self.options
        folder = options.masks or self.folder
        file = folder / f"ecodiff{self.seed}.safetensors"
        if not file.exists():
            config = cd.EcoDiffConfig(
                target=1 - options.target, cost="flops", steps=STEPS, guidance=GUIDANCE,
                updates=60, seed=self.seed, start="taylor",
            )  # fmt: skip
            learnt = cd.learn_masks(self.pipe, texts(self.training), config)
            save_file({n: v.detach().contiguous() for n, v in learnt.logits.items()}, file)
        return load_file(file)

    def judged(self, name: str, make: Any, cost: float) -> None:
        """Accuracy on the held-out captions, kept with what it costs."""
        how = {"seed": self.seed * 100_000, "steps": STEPS, "guidance": GUIDANCE}
        right = correct(make(texts(self.wanted), **how), self.wanted, self.judge).float()
        row = {f"{n} objects": float(right[self.counts == n].mean()) for n in OBJECTS}
        self.row["cost"][name] = cost
        self.keep("accuracy", {**self.row["accuracy"], name: {**row, "all": float(right.mean())}})
        print(f"seed {self.seed}: {name} ({cost:.3f}): {self.row['accuracy'][name]}", flush=True)

    @property
    def counts(self) -> Tensor:
        """How many digits each held-out caption names."""
        return torch.tensor([len(s.objects) for s in self.wanted])
