"""How much faster a model is with fewer tokens, and how much it could be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..profile import Latency, Ratio, compare, measure_latency
from .config import PruneConfig
from .flops import flops
from .patch import pruned


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One setting, timed beside the dense model."""

    latency: Latency  # of a batch
    batch: int
    tokens: tuple[int, ...]  # of each block
    flops_share: float
    over_dense: Ratio | None  # time of the dense model over this one's; None for the dense itself

    @property
    def images_per_second(self) -> float:
        """By the median batch."""
        return 1e3 * self.batch / self.latency.p50

    @property
    def speed_up(self) -> float:
        """Dense time over this one's."""
        return 1.0 if self.over_dense is None else self.over_dense.median

    @property
    def ideal(self) -> float:
        """The speed-up if time went with multiply-adds."""
        return 1 / self.flops_share

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        made = self.over_dense
        return {
            "images_per_second": self.images_per_second,
            "ms_p50": self.latency.p50,
            "ms_p90": self.latency.p90,
            "clock": self.latency.clock,
            "tokens": list(self.tokens),
            "flops_share": self.flops_share,
            "speed_up": self.speed_up,
            "speed_up_interval": None if made is None else [made.low, made.high],
            "ideal": self.ideal,
        }


def benchmark(
    model: nn.Module,
    configs: Sequence[PruneConfig | None],
    *,
    batch: int = 4,
    seconds: float = 5.0,
    images: Any = None,
    seed: int = 0,
) -> list[Speed]:
    """Speeds of the model under each pruning (None: dense), each in turn with the dense model.

    images: a batch; unset, random pixels. Times are of all processors together, so that other
    programs on the machine do not count; dense and pruned runs alternate.
    """
    model.eval()
    config: Any = model.config
    if images is None:
        g = torch.Generator().manual_seed(seed)
        images = torch.randn(batch, config.channels, *config.image, generator=g)

    def run(setting: PruneConfig | None) -> Any:
        with torch.inference_mode(), pruned(model, setting):
            return model(images)

    rows = []
    for setting in configs:
        cost = flops(model, None if setting is None else setting.schedule)
        if setting is None:
            ratio = None
            latency = measure_latency(lambda: run(None), seconds=seconds, clock="cpu")
        else:
            fewer = partial(run, setting)
            ratio = compare(fewer, lambda: run(None), seconds=seconds, clock="cpu")
            latency = ratio.a
        rows.append(
            Speed(
                latency=latency,
                batch=len(images),
                tokens=cost.tokens,
                flops_share=cost.total / flops(model).total,
                over_dense=ratio,
            )
        )
    return rows
