"""What training a router is made of: a dataclass, from which options and TOML keys follow.

Defaults are those of APTP's released code (2406.12042); "ours" marks what it has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...engine.fields import check_ranges, option
from ...errors import ConfigError

_RECUT = ("fisher", "taylor", "magnitude", "random")
# Both ends included.
_RANGES: dict[str, tuple[float, float]] = {
    "experts": (1, 4096),
    "target": (1e-3, 1 - 1e-6),
    "steps": (2, 10**7),
    "batch": (2, 10**5),
    "warmup": (0, 1),
    "learning_rate": (1e-8, 100),
    "tau": (1e-3, 100),
    "bias": (-20, 20),
    "bundle": (1, 10**6),
    "grade": (1, 1e4),
    "need": (1e-3, 1 - 1e-6),
    "directions": (1, 10**6),
    "sinkhorn": (1e-3, 10),
    "sinkhorn_iterations": (1, 10**4),
    "temperature": (1e-4, 100),
    "min_snr": (1e-3, 1e6),
    "drop": (0, 1),
    "inference_steps": (1, 10**4),
    "seed": (0, 2**40),
    **{
        name: (0, 1e6)
        for name in ("denoise", "distill", "blocks", "resource", "contrast", "spread", "peak")
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AptpConfig:
    """Everything that decides what router is learnt, besides the pipeline and the prompts."""

    experts: int = option(8, "Architecture codes, N.")
    target: float = option(0.6, "Share of the denoiser's multiply-adds that stays, on average.")
    depth: bool = option(True, "Codes may bypass whole blocks, in a fixed order.")
    bundle: int = option(32, "Feed-forward neurons go in at most this many bundles.")
    steps: int = option(5000, "Optimiser steps.")
    batch: int = option(64, "Prompts of a step.")
    warmup: float = option(
        0.1, "Share of the steps in which every prompt has a network of its own."
    )
    learning_rate: float = option(
        0.0128, "Of AdamW, after a warm-up of 100 steps; released 2e-4 x 64 prompts."
    )
    tau: float = option(0.4, "Temperature of the gates.")
    bias: float = option(3.0, "Added to the gates' logits: they start nearly open.")
    start: Literal["open", "magnitude", "graded"] = option(
        "open",
        "Of the gates: nearly open, as released; at the budget, large weights; or so in graded "
        "sizes, each for the prompts that need it (both ours).",
    )
    grade: float = option(
        5.0, "With graded: largest over smallest code, of the cost above the least there can be."
    )
    need: float | None = option(
        None,
        "With graded: target at which it is measured which prompt needs how much; unset: the same. "
        "Networks that are cut so far that they answer nothing right tell no prompts apart (ours).",
    )
    directions: int | None = option(
        None,
        "With graded: need is told apart along so many principal directions of the embeddings, so "
        "that prompts of a kind stay together; unset: along all (ours).",
    )
    recut: Literal["fisher", "taylor", "magnitude", "random"] | None = option(
        None,
        "At the end, cut each code again at its size, by these scores of units on its own prompts; "
        "unset: as learnt (ours).",
    )
    noise: Literal["logistic", "gumbel"] = option(
        "logistic", "Of the gates: zero on average (ours), or one Gumbel variable as released."
    )
    transport: bool = option(True, "Use all codes alike, by optimal transport.")
    sinkhorn: float = option(0.05, "Entropy weight of the transport.")
    sinkhorn_iterations: int = option(3, "Of Sinkhorn's algorithm.")
    temperature: float = option(0.03, "Of the contrastive loss.")
    denoise: float = option(1.0, "Weight of the denoising loss.")
    distill: float = option(0.2, "Weight of the distance to the dense output.")
    blocks: float = option(0.2, "Weight of the distance to the dense blocks' outputs.")
    resource: float = option(2.0, "Weight of the budget.")
    contrast: float = option(100.0, "Weight of the contrastive loss.")
    spread: float = option(0.1, "Weight on how far capacities differ.")
    peak: float = option(0.1, "Weight on how large the largest capacity is.")
    min_snr: float = option(5.0, "Largest signal-to-noise ratio that counts in the denoising loss.")
    drop: float = option(0.1, "Share of the prompts replaced by none, which guidance needs (ours).")
    inference_steps: int = option(20, "Times are those of an inference with so many steps (ours).")
    seed: int = option(0, "Of everything random.")

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option for every value nothing can be learnt with."""
        check_ranges(self, _RANGES)
        if self.noise not in ("logistic", "gumbel"):
            raise ConfigError(f"--noise {self.noise!r} is unknown: choose logistic or gumbel")
        if self.start not in ("open", "magnitude", "graded"):
            raise ConfigError(
                f"--start {self.start!r} is unknown: choose open, magnitude or graded"
            )
        if self.recut not in (None, *_RECUT):
            raise ConfigError(f"--recut {self.recut!r} is unknown: choose {', '.join(_RECUT)}")
