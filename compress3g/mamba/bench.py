"""How much faster a model is with fewer tokens, and how much it could be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    images: a batch; unset, random pixels. On a CPU times are of all processors together, so that
    other programs on the machine do not count, on a GPU its events'; dense and pruned runs
    alternate.
    """
    model.eval()
    device = next(model.parameters()).device
    how: dict[str, Any] = {"seconds": seconds, "device": str(device)}
    how["clock"] = "cpu" if device.type == "cpu" else "wall"
    config: Any = model.config
    if images is None:
        g = torch.Generator().manual_seed(seed)
        images = torch.randn(batch, config.channels, *config.image, generator=g).to(device)

    def run(setting: PruneConfig | None) -> Any:
        with torch.inference_mode(), pruned(model, setting):
            return model(images)

    rows = []
    for setting in configs:
        cost = flops(model, None if setting is None else setting.schedule)
        if setting is None:
            ratio = None
            latency = measure_latency(lambda: run(None), **how)
        else:
            fewer = partial(run, setting)
            ratio = compare(fewer, lambda: run(None), **how)
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


def table(rows: Sequence[Mapping[str, Any]], device: str = "cpu") -> str:
    """The rows of `to_json`, each with its backend and keep, for a terminal."""
    lines = [
        f"{'backend':10}{'keep':>6}{'images/s':>10}{'p50 ms':>9}{'p90 ms':>9}"
        f"{'speed-up':>10}{'95 %':>14}{'ideal':>7}{'realised':>10}"
    ]
    for r in rows:
        between = r["speed_up_interval"]
        spread = "" if between is None else f"{between[0]:.2f} to {between[1]:.2f}"
        lines.append(
            f"{r['backend']:10}{r['keep']:>6g}{r['images_per_second']:>10.1f}{r['ms_p50']:>9.1f}"
            f"{r['ms_p90']:>9.1f}{r['speed_up']:>9.2f}x{spread:>14}{r['ideal']:>6.2f}x"
            f"{r['speed_up'] / r['ideal']:>10.0%}"
        )
    clock = "Processor time of all threads" if device == "cpu" else "Time of the GPU"
    lines.append(f"{clock}; ideal: the ratio of multiply-adds.")
    return "\n".join(lines) + "\n"
