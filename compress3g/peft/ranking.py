"""Orders of heads and neurons from a pass of their own over training data, and the best of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..core import Gates, Keep, Units, gated, price
from ..criteria import CRITERIA, Evidence, gather, held, score
from ..errors import ConfigError
from .config import LightPeftConfig
from .cost import Batch
from .units import base_of, of_base

Loss: TypeAlias = Callable[[Any, Batch], Tensor]


def own_loss(model: Any, batch: Batch) -> Tensor:
    """The model's own loss. Raises ConfigError when it has none for this batch."""
    loss: Tensor | None = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ConfigError(
            f"{type(model).__name__} gives no loss for a batch of {', '.join(batch)}: give "
            "LightPeftCallback(loss=...) of model and batch"
        )
    return loss


def ranking_of(
    model: Any,
    units: Sequence[Units],
    config: LightPeftConfig,
    batches: Callable[[], Sequence[Batch]],
    loss: Loss = own_loss,
) -> tuple[Gates, Gates | None]:
    """Scores by a criterion of `compress3g.criteria`, and multipliers that it learnt, if it does.

    It sees the model in evaluation mode with its adapters as they are, and the base weights.
    Raises ConfigError when it needs data and there are none.
    """
    criterion, base = CRITERIA[config.criterion], base_of(model)
    looked = list(batches()) if criterion.needs != "nothing" else []
    if criterion.needs != "nothing" and not looked:
        raise ConfigError(
            f"--criterion {config.criterion} needs training data to look at: give some"
        )
    generator = torch.Generator().manual_seed(config.seed)
    with held(base):
        if criterion.needs == "steps":  # gates before the adapter: they scale what it reads too
            priced = zip(units, price(base, of_base(base, units)), strict=True)
            learnt = [replace(u, cost=p.cost) for u, p in priced]
            steps = config.learn_steps
            evidence = Evidence(base, learnt, generator, None, None, looked, loss, steps=steps)
        else:
            evidence = _one_pass(base, units, config, looked, generator)
        scores, multipliers = score(criterion, evidence)
    if criterion.normalize == "z":
        scores = {n: (s - s.mean()) / s.std().clamp_min(1e-12) for n, s in scores.items()}
    if multipliers is not None:
        multipliers = {n: m.detach().float().cpu() for n, m in multipliers.items()}
    return scores, multipliers


@torch.no_grad()
def _one_pass(
    base: Any,
    units: Sequence[Units],
    config: LightPeftConfig,
    looked: Sequence[Batch],
    generator: torch.Generator,
) -> Evidence:
    return gather(
        base,
        of_base(base, units),
        [CRITERIA[config.criterion]],
        looked,
        run=lambda model, batch: model(**batch),
        valid=_valid if all("attention_mask" in b for b in looked) else None,
        generator=generator,
    )


def _valid(batch: Batch) -> Tensor:
    mask: Tensor = batch["attention_mask"]
    return mask.bool()


def losses_of(
    model: Any,
    units: Sequence[Units],
    keeps: Mapping[str, Keep],
    batches: Callable[[], Sequence[Batch]],
    loss: Loss = own_loss,
) -> dict[str, float]:
    """Mean loss of the model without what each decision takes from it; nothing is cut.

    Raises ConfigError without data.
    """
    base, looked = base_of(model), list(batches())
    if not looked:
        raise ConfigError("--criterion auto compares losses on training data: give some")
    device = next(base.parameters()).device
    found = {}
    with held(base), torch.no_grad():
        for name, keep in keeps.items():
            closed = {
                u.name: torch.zeros(u.size).index_fill(0, keep[u.name].cpu(), 1.0).to(device)
                for u in units
            }
            with gated(base, units, closed):
                found[name] = sum(float(loss(base, b)) for b in looked) / len(looked)
    return found
