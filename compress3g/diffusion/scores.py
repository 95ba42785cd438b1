"""Scores of a denoiser's units by name of a method, and the prompts they look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ..core import Gates, Keep, Units
from ..criteria import CRITERIA, refit
from ..engine.fields import option
from ..errors import ConfigError
from .config import EcoDiffConfig
from .criterion_scores import criterion_scores
from .ecodiff import learn_masks
from .pipelines import denoiser_of, generate
from .prune import KINDS, priced_units

METHODS = ("magnitude", "random", "taylor", "fisher", "ecodiff")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """Everything that decides what goes, besides the pipeline and the prompts."""

    method: Literal["magnitude", "random", "taylor", "fisher", "ecodiff"] = option(
        "fisher", "How units are scored; ecodiff learns masks: better, and takes longest."
    )
    ratio: float = option(0.2, "Share of the denoiser's cost that goes, between 0 and 1.")
    cost: Literal["params", "flops"] = option("params", "The cost that --ratio is a share of.")
    scope: Literal["auto", "global", "layer"] = option(
        "auto", "Rank all units in one list, or take the same share of every group."
    )
    kinds: str = option(",".join(KINDS), "What may go, of heads, neurons and groups (of channels).")
    round_to: int = option(16, "Kept channels are a multiple of this.")
    refit: bool | None = option(
        None,
        "Let what stays take over what goes, by ridge regression on the prompts' images; unset: "
        "where there are prompts.",
    )
    steps: int = option(20, "Denoising steps of the images that are looked at.")
    guidance: float | None = option(None, "Guidance of these images; unset: the pipeline's own.")
    samples: int = option(64, "Prompts that are looked at.")
    batch: int = option(8, "Prompts at a time.")
    updates: int = option(80, "Optimiser steps of ecodiff.")
    seed: int = option(0, "Of everything random.")

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option for every value nothing can be pruned with."""
        if self.method not in METHODS:
            raise ConfigError(f"--method {self.method!r} is unknown: choose {', '.join(METHODS)}")
        if not 0 < self.ratio < 1:
            raise ConfigError(f"--ratio {self.ratio} is not a share between 0 and 1")
        for name in ("round_to", "steps", "samples", "batch", "updates"):
            if getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} {getattr(self, name)} is less than 1")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The kinds as a tuple."""
        return tuple(part.strip() for part in self.kinds.split(",") if part.strip())

    @property
    def looks(self) -> bool:
        """Whether the method looks at prompts."""
        return self.method == "ecodiff" or CRITERIA[self.method].needs != "nothing"

    def how(self) -> dict[str, Any]:
        """What `prune` is told besides the scores."""
        options: dict[str, Any] = {"ratio": self.ratio, "round_to": self.round_to}
        options |= {"kinds": self.wanted, "method": self.method, "cost": self.cost}
        if self.method == "ecodiff":
            return {**options, "scope": "global" if self.scope == "auto" else self.scope}
        criterion = CRITERIA[self.method]
        scope = criterion.scope if self.scope == "auto" else self.scope
        per_cost = criterion.per_cost and scope == "global"
        return {**options, "scope": scope, "per_cost": per_cost, "normalize": criterion.normalize}


def scores_of(
    pipe: Any,
    prompts: Sequence[str],
    config: PruneConfig,
    *,
    learn: EcoDiffConfig | None = None,
    checkpoint: Path | None = None,
) -> Gates | Any:
    """Scores by the configured method, or for "ecodiff" what `learn_masks` returns.

    learn: everything about learning masks, of which `config` says only the usual; checkpoint: of
    learning. Raises ConfigError when a method that looks at prompts is given none.
    """
    if config.looks and not prompts:
        raise ConfigError(f"--method {config.method} needs --prompts FILE")
    prompts = prompts[: config.samples]
    if config.method == "ecodiff":
        units = priced_units(denoiser_of(pipe)[1], config.wanted)
        return learn_masks(
            pipe, prompts, learn or _usual(config), units=units, checkpoint=checkpoint
        )
    return criterion_scores(
        pipe,
        prompts,
        config.method,
        units=priced_units(denoiser_of(pipe)[1], config.wanted),
        steps=config.steps,
        guidance=config.guidance,
        batch=config.batch,
        seed=config.seed,
    )


def before_cut(
    pipe: Any, prompts: Sequence[str], config: PruneConfig
) -> Callable[[nn.Module, Sequence[Units], Keep], None] | None:
    """What `prune` is to do before it cuts: `criteria.refit`, or nothing.

    Calibration data are the pipeline's own calls of its denoiser, guidance and all, while it makes
    images of the prompts. Raises ConfigError when there are none and `refit` is asked for.
    """
    if config.refit and not prompts:
        raise ConfigError("--refit needs --prompts FILE")
    if config.refit is False or not prompts:
        return None
    chosen = prompts[: config.samples]
    firsts = range(0, len(chosen), config.batch)

    def run(denoiser: nn.Module, first: int) -> None:
        part, seed = chosen[first : first + config.batch], config.seed + first
        generate(
            pipe, part, seed=seed, steps=config.steps, guidance=config.guidance, output="latent"
        )

    def fit(denoiser: nn.Module, units: Sequence[Units], keep: Keep) -> None:
        refit(denoiser, units, keep, lambda: firsts, run=run)

    return fit


def _usual(config: PruneConfig) -> EcoDiffConfig:
    return EcoDiffConfig(
        target=config.ratio,
        cost=config.cost,
        steps=config.steps,
        updates=config.updates,
        batch=config.batch,
        accumulate=max(1, EcoDiffConfig().accumulate // config.batch),
        guidance=config.guidance,
        seed=config.seed,
    )
