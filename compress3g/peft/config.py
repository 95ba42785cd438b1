"""What Light-PEFT is told: one frozen dataclass, from which options and TOML keys follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..criteria import CRITERIA
from ..engine.fields import option
from ..errors import ConfigError

Config = TypeVar("Config", bound="LightPeftConfig")

# Scored on the gates while they are estimated, for nothing more than their own gradients.
ESTIMATED = ("l1_mask", "taylor", "fisher")
# Of these, guesses at the loss without a unit: numbers of different layers compare.
COMPARABLE = ("taylor", "fisher")
# Scored on training data at the cut, with the adapters as they are then: in one pass, or (vib) by
# gates that learn for a while.
AT_CUT = (*(name for name, c in CRITERIA.items() if c.needs in ("nothing", "forward")), "vib")
# What "auto" chooses from, by the loss of training data without what each would take.
AUTO = ("l1_mask", "taylor", "fisher", "flap")
KINDS = ("params", "flops", "ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class LightPeftConfig:
    """How long to look, and how much of heads, neurons, adapters and ranks goes (2406.03792)."""

    attn_ratio: float = option(1 / 3, "Share of the heads (key-value groups) that go.")
    ffn_ratio: float = option(1 / 3, "Share of the feed-forward neurons that go.")
    module_ratio: float = option(0.5, "Share of the adapted layers whose adapter goes.")
    rank_ratio: float = option(0.5, "Share of the ranks that go from the adapters that stay.")
    budget: str | None = option(
        None, "Instead of the first two: params=SHARE or flops=SHARE that stays, or ms=TIME."
    )
    estimation_steps: int | Literal["auto"] = option(
        "auto", "Steps before the cut; auto: a tenth of the run, at least 50."
    )
    criterion: str = option(
        "fisher", f"How heads and neurons are scored: {', '.join((*ESTIMATED, *AT_CUT, 'auto'))}."
    )
    l1: float = option(1e-4, "Weight of the gates' l1 penalty, lambda.")
    mask_lr_mult: float = option(1.0, "The gates' learning rate over the adapters'.")
    attn_scope: Literal["auto", "layer", "global"] = option(
        "auto", f"Which heads compete; auto: global by {' or '.join(COMPARABLE)}, else layer."
    )
    ffn_scope: Literal["layer", "global"] = option("global", "Which neurons compete.")
    rank_scope: Literal["layer", "global"] = option("global", "Which ranks compete.")
    rank_score: Literal["taylor", "paper"] = option(
        "taylor", "|b . dL/db| of a rank; paper: times (1/d_in + 1/d_out)."
    )
    fold: Literal["merge", "reset"] = option(
        "merge", "Gates at the cut: multiplied into the weights that read, or back to one."
    )
    merge_dropped: bool = option(True, "What adapters lose is merged into the base, not discarded.")
    refit: bool | None = option(
        None, "What stays is fitted to --samples at the cut; default: where there are samples."
    )
    rate_after_cut: float = option(
        2.0, "Learning rate after the cut over the schedule's: half of the ranks move a layer half."
    )
    shrink_steps: int = option(0, "Last steps of the estimation, in which what goes fades to zero.")
    multiple_of: int | Literal["auto"] = option(
        "auto", "Kept neurons of a layer are a multiple; auto: 16, on CUDA 64."
    )
    min_units_per_site: int = option(1, "Heads or neurons that every layer keeps.")
    towers: Literal["both", "text", "vision"] = option("both", "Which towers lose units.")
    exclude: str = option("", "Comma-separated patterns of sites that stay whole, as *.layers.0.*")
    samples: int = option(64, "Training samples for refit, criteria and budgets at the cut.")
    learn_steps: int = option(50, "Steps in which the gates of criterion vib learn, at the cut.")
    seed: int = option(0, "Of everything random.")

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option for every value that makes no plan."""
        for name in ("attn_ratio", "ffn_ratio", "module_ratio", "rank_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{_flag(name)} {getattr(self, name)} is not a share in [0, 1)")
        if self.criterion not in (*ESTIMATED, *AT_CUT, "auto"):
            known = ", ".join((*ESTIMATED, *AT_CUT, "auto"))
            raise ConfigError(f"--criterion {self.criterion!r} is unknown; known are {known}")
        for name, least in (("l1", 0), ("mask_lr_mult", 0), ("shrink_steps", 0)):
            if not getattr(self, name) >= least:  # also true for NaN
                raise ConfigError(f"{_flag(name)} {getattr(self, name)} is less than {least}")
        if not 0 < self.rate_after_cut < float("inf"):
            raise ConfigError(f"--rate-after-cut {self.rate_after_cut} is no positive number")
        counts = ("estimation_steps", "multiple_of", "min_units_per_site", "samples", "learn_steps")
        for name in counts:
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ConfigError(f"{_flag(name)} {value} is less than 1")
        if self.refit and self.shrink_steps:
            raise ConfigError("--refit mends what --shrink-steps let fade before: give one of them")
        if isinstance(self.estimation_steps, int) and self.shrink_steps >= self.estimation_steps:
            raise ConfigError(
                f"--shrink-steps {self.shrink_steps} leave nothing of --estimation-steps "
                f"{self.estimation_steps} to look: give fewer"
            )
        if self.budget is not None:
            parse_budget(self.budget)

    @property
    def heads_compete(self) -> Literal["layer", "global"]:
        """`attn_scope`, decided."""
        if self.attn_scope == "auto":
            return "global" if self.criterion in COMPARABLE else "layer"
        return self.attn_scope

    @classmethod
    def paper(cls: type[Config], **changes: Any) -> Config:
        """As the released SST-2 script: gates alone decide, three quarters of the adapters go."""
        released = {
            "criterion": "l1_mask", "attn_scope": "layer", "module_ratio": 0.75,
            "rank_score": "paper", "fold": "reset", "merge_dropped": False, "refit": False,
            "rate_after_cut": 1.0,
        }  # fmt: skip
        return cls(**{**released, **changes})

    @classmethod
    def safe(cls: type[Config], **changes: Any) -> Config:
        """A sixth of heads and neurons."""
        return cls(**{"attn_ratio": 1 / 6, "ffn_ratio": 1 / 6, **changes})


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse_budget(text: str) -> tuple[str, float]:
    """Kind and limit of "params=0.6". Raises ConfigError for what is no budget.

    >>> parse_budget("ms=12")
    ('ms', 12.0)
    """
    kind, _, value = text.partition("=")
    try:
        limit = float(value)
    except ValueError:
        limit = float("nan")
    if kind not in KINDS or not 0 < limit < float("inf") or (kind != "ms" and limit > 1):
        raise ConfigError(
            f"--budget {text!r} is none: give params=SHARE, flops=SHARE (in (0, 1]) or ms=TIME"
        )
    return kind, limit
