"""How much a head adds to the residual stream, and a neuron to what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Cut, Gates, Units
from ..engine.ranks import of_all_ranks
from ._weights import features, summed, weights_of
from .observe import Stats

_CHUNK = 1 << 22  # numbers at a time: a row per token, unit and output would not fit


class Contributions:
    """E||x_g W_g^T||_1 over tokens of every unit wider than one column; for `observe(also=...)`."""

    def __init__(self, model: nn.Module, units: Sequence[Units]) -> None:
        self._model = model
        self._wide: dict[str, list[tuple[str, int, Cut]]] = {}
        self._count: dict[str, int] = {}
        self._sums: dict[tuple[str, str], Tensor] = {}  # by reader and units
        for u in units:
            for cut in u.reads:
                if cut.chunk > 1:
                    self._wide.setdefault(cut.module, []).append((u.name, u.size, cut))
                    self._sums[cut.module, u.name] = torch.zeros(u.size, dtype=torch.float64)

    def __call__(self, reader: str, rows: Float[Tensor, "n f"]) -> None:
        """Add the valid rows that a reader was given."""
        for name, size, cut in self._wide.get(reader, ()):
            weight = weights_of(self._model, cut, size)
            x = rows[:, cut.slots(torch.arange(size, device=rows.device))].float()
            x = x.view(len(x), size, cut.chunk)
            step = max(1, _CHUNK // (size * weight.shape[2]))
            for part in x.split(step):
                norms = torch.einsum("nsc,sco->nso", part, weight).abs().sum((0, 2))
                self._sums[reader, name] += norms.double().cpu()
        self._count[reader] = self._count.get(reader, 0) + len(rows)

    def mean(self) -> Gates:
        """The mean norm of every unit wider than one column, summed over its readers.

        Over all processes of a distributed run.
        """
        means: dict[str, Tensor] = {}
        ranks = of_all_ranks((self._sums, self._count))
        for reader, name in self._sums:
            total = torch.stack([sums[reader, name] for sums, _ in ranks]).sum(0)
            count = sum(counts.get(reader, 0) for _, counts in ranks)
            mean = (total / max(1, count)).float()
            means[name] = means.get(name, 0.0) + mean
        return means


def amp(units: Sequence[Units], stats: Stats, heads: Mapping[str, Tensor]) -> Gates:
    """Heads: E||x_h W_h^T||_1; neurons: E|x_j| at their reader (2504.21174).

    heads: `Contributions.mean()`. The two are not comparable: the paper takes the same share of
    every layer (`allocation.by_layer`).
    """
    absolute = summed(units, lambda u, cut: features(stats.absolute[cut.module], u, cut))
    return {**absolute, **heads}
