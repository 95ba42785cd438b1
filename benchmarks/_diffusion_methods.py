"""Ways to prune the digits pipeline that diffusion_quality.py compares, by name.

Masks ("ecodiff", "ordered", "step", "control") are learnt for the ratio they are pruned at;
"ecodiff@0.3" prunes at any by those for 0.3. They are learnt with the defaults of `EcoDiffConfig`,
and the steps; "ordered" starts in the order of fisher's scores. "+refit" adds the ridge regression
of readers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import compress3g.diffusion as cd
from compress3g.diffusion.calibration import lessons, loss
from compress3g.diffusion.prune import decide, priced_units
from compress3g.engine.checkpoint import load_tensors, save_tensors

METHODS = (
    "ecodiff@0.3", "ecodiff", "magnitude", "taylor", "random", "fisher", "ecodiff+refit",
    "taylor+refit", "fisher+refit", "torch-pruning", "torch-pruning taylor", "control", "step",
    "ordered@0.3", "ordered@0.3+refit",
)  # fmt: skip
ROUND_TO = 8  # kept channels; the model's layers have 16 to 48
DRAWS = {"random": 2, "control": 2}  # of every seed; others have one
# A step of the optimiser looks at as much as by default, at once, and no step is run twice: a small
# model has the memory.
LEARNING: dict[str, Any] = {"batch": 8, "accumulate": 1, "steps": 8, "keep_last": 8}
UPDATES = cd.EcoDiffConfig().updates
LEARNT = {"ecodiff": "last", "ordered": "ordered", "step": "step"}  # to the masks' file
INNER = True  # torch-pruning leaves the residual stream whole
SETTINGS = (ROUND_TO, cd.EcoDiffConfig(**LEARNING), INNER)


@dataclass(frozen=True, slots=True)
class Methods:
    """What the methods look at: training captions. Scores and masks are kept in `folder`.

    seed: of all that is random but the draws of "random" and "control"; updates: of masks.
    """

    pipe: Any
    captions: Sequence[str]
    steps: int
    guidance: float
    seed: int
    folder: Path
    updates: int

    def prune(self, method: str, ratio: float, draw: int = 0) -> Any:
        """A copy of the pipeline without `ratio` of its denoiser's parameters."""
        name, _, then = method.partition("+")
        name, _, learnt_at = name.partition("@")
        target = float(learnt_at or ratio)
        pipe = copy.deepcopy(self.pipe)
        if name.startswith("torch-pruning"):
            return self._peer(pipe, ratio, taylor=name.endswith("taylor"))
        how = self._config(name).how()
        if name == "control":
            # As many units of every group as EcoDiff leaves, any of them.
            order = torch.Generator().manual_seed(draw)
            scores = {
                n: z[torch.randperm(len(z), generator=order)]
                for n, z in self._masks("last", target).items()
            }
        elif name in LEARNT:
            scores = self._masks(LEARNT[name], target)
        else:
            scores = self._of_criterion(name, draw)
        how["ratio"] = ratio
        if then == "refit":
            self._refit(pipe, scores, how)
        return cd.prune(pipe, scores, **how)

    def _refit(self, pipe: Any, scores: Any, how: dict[str, Any]) -> None:
        """In place, before `prune` comes to the same decision: it looks at no weight."""
        units = priced_units(pipe.unet, how["kinds"])
        total = sum(p.numel() for p in pipe.unet.parameters())
        ranked = {n: how[n] for n in ("scope", "round_to", "normalize", "per_cost") if n in how}
        keep = decide(scores, units, how["ratio"] * total, total, **ranked)

        def run(_: Any, first: int) -> None:
            part = self.captions[first : first + 8]
            shown: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance}
            cd.generate(pipe, part, seed=self.seed + first, **shown, output="latent")

        cd.refit(pipe.unet, units, keep, lambda: range(0, len(self.captions), 8), run=run)

    def _config(self, name: str) -> Any:
        known: Any = "ecodiff" if name in (*LEARNT, "control") else name
        return cd.PruneConfig(
            method=known, steps=self.steps, guidance=self.guidance, samples=len(self.captions),
            seed=self.seed, round_to=ROUND_TO,
        )  # fmt: skip

    def _of_criterion(self, name: str, draw: int) -> dict[str, Tensor]:
        config = self._config(name)
        if name == "random":
            config = replace(config, seed=draw)
            return cd.scores_of(copy.deepcopy(self.pipe), (), config)
        file = self.folder / f"{name}-{self.seed}.safetensors"
        if not file.exists():
            save_tensors(file, cd.scores_of(copy.deepcopy(self.pipe), self.captions, config), {})
        return load_tensors(file)[0]

    def _masks(self, kind: str, target: float) -> dict[str, Tensor]:
        """Learnt for this ratio, or read from the folder; an interrupted run goes on."""
        file = self.folder / f"{kind}-{target:g}-{self.seed}.safetensors"
        if not file.exists():
            config = cd.EcoDiffConfig(
                target=target, loss="step" if kind == "step" else "last", updates=self.updates,
                start="fisher" if kind == "ordered" else "open", guidance=self.guidance,
                seed=self.seed, **LEARNING,
            )  # fmt: skip
            cd.learn_masks(
                copy.deepcopy(self.pipe), self.captions, config,
                checkpoint=file.with_suffix(".checkpoint"), cache=self.folder / "latents",
            ).save(file)  # fmt: skip
        return cd.Learned.load(file).logits

    def _peer(self, pipe: Any, ratio: float, *, taylor: bool) -> Any:
        from _torch_pruning import cut_unet

        calls = lessons(
            pipe, self.captions, steps=self.steps, guidance=self.guidance, seed=self.seed
        )

        def backward(unet: Any) -> None:
            for call in calls:
                (loss(unet, call) / len(calls)).backward()

        pipe.unet = cut_unet(
            pipe.unet, calls[0].call, ratio, backward if taylor else None, inner=INNER
        )
        return pipe
