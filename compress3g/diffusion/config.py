"""What learning masks is made of: one frozen dataclass, from which options and TOML keys follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..engine.fields import check_ranges, option
from ..errors import ConfigError

# Both ends included.
_RANGES: dict[str, tuple[float, float]] = {
    "target": (1e-6, 1 - 1e-6),
    "steps": (1, 10**4),
    "updates": (1, 10**7),
    "batch": (1, 10**4),
    "accumulate": (1, 10**5),
    "beta": (0, 1e6),
    "rho": (0, 1e6),
    "dual_rate": (0, 1e6),
    "anneal": (0, 1),
    "learning_rate": (1e-8, 100),
    "init": (-10, 10),
    "start_closed": (0, 1),
    "slope": (1e-3, 100),
    "noise_floor": (1e-8, 10),
    "guidance": (0, 1e3),
    "seed": (0, 2**40),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EcoDiffConfig:
    """Everything that decides what masks are learnt, besides the pipeline and the prompts."""

    target: float = option(0.2, "Share of the denoiser's cost that shall go, in (0, 1).")
    cost: Literal["params", "flops"] = option("params", "The cost that --target is a share of.")
    steps: int = option(50, "Inference steps of a trajectory.")
    updates: int = option(80, "Optimiser steps.")
    batch: int = option(1, "Prompts of a trajectory.")
    accumulate: int = option(
        8, "Trajectories of an optimiser step, shared out among processes; batch 8 is as good."
    )
    loss: Literal["last", "step"] = option(
        "last",
        "Compare last latents (EcoDiff), or every step's from dense inputs (the baseline).",
    )
    reg: Literal["l0", "l1"] = option(
        "l0", "Exact expected cost under a budget, or the paper's beta |logits|."
    )
    beta: float = option(0.5, "Weight of --reg l1; paper 0.01 to 1.")
    rho: float = option(18.0, "Penalty weight of the budget, in first losses; small is gentle.")
    dual_rate: float = option(
        140.0, "Dual ascent on the budget's multiplier, all updates together, in first losses."
    )
    anneal: float = option(0.5, "Share of the updates over which the budget shrinks to its target.")
    learning_rate: float = option(
        0.15, "Of Adam, down to 0 over the last quarter; paper 0.1 to 0.5, constant."
    )
    init: float = option(1.0, "Logits at the start, all alike; paper 2.5 to 4, with --reg l1.")
    start: Literal["open", "taylor", "fisher"] = option(
        "open", "Logits start alike, or in the order of a score of the same prompts."
    )
    start_closed: float = option(0.5, "Share of what shall go that --start begins with closed.")
    slope: float = option(4.0, "Logits of --start, in standard deviations of the order.")
    noise_floor: float = option(
        1e-6, "Bound of the gates' noise; paper 0.5 (U-Net), 0.1 (FLUX), 1 (SD3), with --reg l1."
    )
    guidance: float | None = option(None, "Guidance scale (default: the pipeline's).")
    keep_last: int | Literal["auto"] = option(
        0, "Last steps that keep their graph: faster, more memory; auto: those that fit."
    )
    inner_checkpoint: bool = option(False, "Checkpoint the denoiser's blocks: less memory, slower.")
    halves: bool = option(False, "Both halves of guidance in turn: less memory, slower.")
    offload_latents: bool = option(False, "Stored latents wait in the CPU's memory.")
    seed: int = option(0, "Of everything random.")

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option for every value nothing can be learnt with."""
        check_ranges(self, _RANGES)
        if self.keep_last != "auto" and self.keep_last < 0:
            raise ConfigError(f"--keep-last {self.keep_last} is negative: give a number or auto")
