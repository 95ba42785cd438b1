"""Multiply-adds of a model, dense or pruned, in two conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from .schedule import PruneSchedule, even_layers

if TYPE_CHECKING:
    from .models import PlainMambaConfig, VimConfig

Convention = Literal["paper", "true"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Multiply-adds of one image, and the tokens (class token included) of each block."""

    total: float
    tokens: tuple[int, ...]
    convention: Convention


def flops(
    model: Any, schedule: PruneSchedule | None = None, *, convention: Convention = "paper"
) -> Cost:
    """Multiply-adds of one image through `model`, or a model of that configuration.

    `paper` is what papers count: 9 per state element of a scan, exponentials left out, of Vim one
    direction. It gives the published 1.45 G (Vim-T), 5.08 G (Vim-S) and 3.0, 8.1 and 14.4 G
    (PlainMamba). `true` counts all directions, 3 multiply-adds and an exponential per state
    element, and scores.
    A schedule by threshold depends on the image: it counts as keeping everything.

    >>> from .models import VimConfig
    >>> f"{flops(VimConfig()).total / 1e9:.2f} {flops(VimConfig(width=384)).total / 1e9:.2f}"
    '1.45 5.08'
    """
    config: VimConfig | PlainMambaConfig = getattr(model, "config", model)
    patches, extra = config.patches, config.extra_tokens
    if schedule is None:
        counts: tuple[int, ...] = (patches,) * config.depth
    else:
        counts = schedule.tokens(patches, config.depth)
    each = config.token_cost(convention)
    total = sum((n + extra) * each for n in counts)
    if convention == "true" and schedule is not None and not schedule.dense:
        total += sum((counts[layer - 1] + extra) * config.inner for layer in schedule.layers)
    total += config.fixed_cost()
    return Cost(total=total, tokens=tuple(n + extra for n in counts), convention=convention)


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
    places = layers or even_layers(config.depth)
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
