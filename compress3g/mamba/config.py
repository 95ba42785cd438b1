"""What decides how tokens are pruned, and the settings that have a name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from ..engine.fields import option
from ..errors import ConfigError
from .flops import schedule_for_flops
from .holes import Align, ConvAlign
from .models.family import blocks_of, prune_points
from .schedule import Mode, PruneSchedule
from .scores import Score
from .select import MERGING, Method

Number = TypeVar("Number", int, float)
Preset = Literal["top", "top_vim_code", "evit", "random", "r_meeto", "utr", "ward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """Everything about pruning: when, what goes, and how later layers see the holes."""

    schedule: PruneSchedule = field(default_factory=PruneSchedule)
    method: Method = "drop"
    score: Score = "l1"
    align: Align = "current"
    conv_align: ConvAlign = "zero"
    max_gap: int | None = None
    seed: int = 0  # of the score `random`

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that contradict each other."""
        if self.schedule.cls == "center" and not (
            self.align in ("none", "hold") and self.conv_align == "none"
        ):
            raise ConfigError(
                "a class token moved to the centre has no distance to its neighbours: "
                "use cls='true', or align and conv_align 'none'"
            )
        if self.schedule.mode == "threshold" and self.method != "drop":
            raise ConfigError(
                f"method {self.method} needs a count: use mode ratio, count or tokens"
            )
        if self.align == "size" and self.method not in MERGING:
            raise ConfigError(
                f"method {self.method} merges nothing, so that align size has no sizes: "
                "use method ward, merge or utr"
            )
        if self.max_gap is not None and self.max_gap < 0:
            raise ConfigError(f"max_gap counts positions, got {self.max_gap}")


def described(config: PruneConfig | None) -> str:
    """One line for people.

    >>> described(None)
    'dense'
    """
    if config is None:
        return "dense"
    s = config.schedule
    keeps = ",".join(f"{k:g}" for k in s.keep)
    return (
        f"after blocks {','.join(map(str, s.layers))} keep {keeps} ({s.mode}), {config.method}, "
        f"score {config.score}, align {config.align}, conv {config.conv_align}"
    )


_NAIVE: dict[str, Any] = {"align": "none", "conv_align": "none"}
_PRESETS: dict[Preset, dict[str, Any]] = {
    "top": {"score": "clip", "align": "current", "conv_align": "none"},
    "top_vim_code": {"score": "mirrored", **_NAIVE},
    "evit": {"method": "evit", "score": "attentiveness", **_NAIVE},
    "random": {"score": "random", **_NAIVE},
    "r_meeto": {"method": "merge", **_NAIVE},
    "utr": {"method": "utr", "score": "clip", **_NAIVE},
    "ward": {"method": "ward", "align": "size", "conv_align": "hold"},
}


def preset(name: Preset, schedule: PruneSchedule) -> PruneConfig:
    """A method with a name on a schedule of yours, so that all have the same number of tokens.

    `top` is 2409.18962 as its paper has it, `top_vim_code` as its code has it (score and place of
    the class token; its second class tokens in batches are left out), `evit` 2202.07800, `r_meeto`
    2412.12496, `utr` 2410.14725. `ward` is ours: pairs merge whose merging loses least,
    convolutions see the last token in holes, and scans are told how many each stands for. Raises
    ConfigError for another name.
    """
    if name not in _PRESETS:
        raise ConfigError(f"no preset {name!r}: use {', '.join(_PRESETS)}")
    if name == "top_vim_code":
        schedule = replace(schedule, cls="center")
    return PruneConfig(schedule=schedule, **_PRESETS[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """Pruning in the words of a command line."""

    keep: str | None = option(None, "What stays at each prune point, as .8 or .8,.7; see --mode.")
    flops: float | None = option(None, "Share of the FLOPs that may be left, in place of --keep.")
    layers: str | None = option(None, "Blocks after which tokens go, as 5,10,15 (default: three).")
    mode: Mode = option("ratio", "Whether --keep is a share, a count, a loss or a share of scores.")
    preset: Preset | None = option(None, "A method with a name; overrules the options below.")
    method: Method = option("drop", "Drop tokens, fuse (evit), or merge them (merge, utr, ward).")
    score: Score = option("l1", "What a token is worth.")
    align: Align = option("current", "Decay of the state over holes.")
    conv_align: ConvAlign = option("zero", "What convolutions see in holes.")

    def config(self, model: Any) -> PruneConfig | None:
        """The settings for this model; None when neither `keep` nor `flops` is given.

        Raises ConfigError for what cannot be read, or does not suit the model.
        """
        if self.keep is not None and self.flops is not None:
            raise ConfigError("--keep and --flops exclude each other: give one of them")
        layers = (
            prune_points(model) if self.layers is None else numbers(self.layers, int, "--layers")
        )
        if self.flops is not None:
            schedule = schedule_for_flops(model, self.flops, layers=layers)
        elif self.keep is not None:
            keeps = numbers(self.keep, float, "--keep")
            keeps = keeps * len(layers) if len(keeps) == 1 else keeps
            schedule = PruneSchedule(layers=layers, keep=keeps, mode=self.mode)
        else:
            return None
        schedule.check(len(blocks_of(model)))
        if self.preset is not None:
            return preset(self.preset, schedule)
        return PruneConfig(
            schedule=schedule,
            method=self.method,
            score=self.score,
            align=self.align,
            conv_align=self.conv_align,
        )


def numbers(text: str, kind: type[Number], flag: str) -> tuple[Number, ...]:
    """The numbers of `5,10,15`. Raises ConfigError naming the option.

    >>> numbers("5,10,15", int, "--layers")
    (5, 10, 15)
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag} {text!r} is not a list of numbers such as 5,10,15") from None
