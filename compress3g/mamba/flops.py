"""Multiply-adds of a model, dense or pruned, in two conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from .schedule import PruneSchedule
from .select import UNSCORED, Method, pairs

if TYPE_CHECKING:
    from .models import Config

Convention = Literal["paper", "true"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Multiply-adds of one image, and the tokens (class token included) of each block."""

    total: float
    tokens: tuple[int, ...]
    convention: Convention


def flops(
    model: Any,
    schedule: PruneSchedule | None = None,
    *,
    convention: Convention = "paper",
    method: Method = "drop",
) -> Cost:
    """Multiply-adds of one image through `model`, or a model of that configuration.

    `paper` is what papers count: 9 per state element of a scan, exponentials left out, of Vim one
    direction, of MambaVision neither scans nor the products of attention. It gives the published
    1.45 G (Vim-T), 5.08 G (Vim-S), 3.0, 8.1 and 14.4 G (PlainMamba), 4.9, 8.7 and 15.4 G (VMamba),
    and 5.1, 7.5 and 15.0 G (MambaVision-T2, S, B; of T 4.46 where 4.4 is published). `true` counts
    all directions, 3 multiply-adds and an exponential per state element, attention, scores, and
    what a `method` compares that looks for what is alike.
    A schedule by threshold depends on the image: it counts as keeping everything.

    >>> from .models import VimConfig
    >>> f"{flops(VimConfig()).total / 1e9:.2f} {flops(VimConfig(width=384)).total / 1e9:.2f}"
    '1.45 5.08'
    """
    config: Config = getattr(model, "config", model)
    extra, stages = config.extra_tokens, config.stages
    if schedule is None:
        counts = tuple(stage.patches for stage in stages for _ in range(stage.depth))
    else:
        counts = schedule.entering([(stage.patches, stage.depth) for stage in stages])
    homes = [i for i, stage in enumerate(stages) for _ in range(stage.depth)]
    total = config.fixed_cost()
    for block, (home, count) in enumerate(zip(homes, counts, strict=True), start=1):
        once = config.block_cost(home, block, count + extra, convention)
        total += stages[home].sequences * once
    if convention == "true" and schedule is not None and not schedule.dense:
        for layer in schedule.layers:
            stage, before = stages[homes[layer - 1]], counts[layer - 1]
            scores = 0 if method in UNSCORED else (before + extra) * stage.inner
            total += stage.sequences * (scores + pairs(method, before) * stage.width)
    tokens = tuple(
        stages[home].sequences * (n + extra) for home, n in zip(homes, counts, strict=True)
    )
    return Cost(total=total, tokens=tokens, convention=convention)


def schedule_for_flops(
    model: Any,
    target: float,
    *,
    layers: tuple[int, ...] | None = None,
    convention: Convention = "paper",
) -> PruneSchedule:
    """The schedule with one ratio for all `layers` whose FLOPs are at most `target` of the dense.

    The largest such ratio by bisection. Raises ConfigError when even one token is too much.

    >>> from .models import VimConfig
    >>> schedule_for_flops(VimConfig(), 0.7, layers=(5, 10, 15)).keep[0]
    0.79
    """
    if not 0 < target <= 1:
        raise ConfigError(f"the share of FLOPs is above 0 and at most 1, got {target:g}")
    config = getattr(model, "config", model)
    places = layers or config.prune_points
    dense = flops(config, convention=convention).total

    def at(ratio: float) -> tuple[PruneSchedule, float]:
        made = PruneSchedule(layers=places, keep=(ratio,) * len(places))
        return made, flops(config, made, convention=convention).total / dense

    low, high = 1, 1000  # thousandths
    if at(low / 1000)[1] > target:
        raise ConfigError(
            f"pruning after blocks {places} leaves at least {at(low / 1000)[1]:.2f} of the FLOPs, "
            f"more than {target:g}: prune earlier"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle / 1000)[1] <= target else (low, middle)
    return at(1.0)[0] if at(1.0)[1] <= target else at(low / 1000)[0]
