"""Logits for a list of units, and vectors over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ScoreError
from .gates import Gate
from .units import Units

Gates: TypeAlias = Mapping[str, Tensor]


class Masks(nn.Module):
    """Learnable logits for a list of Units, and the gate that reads them.

    keep: how open every gate starts; init: the starting logit instead.
    """

    def __init__(
        self, units: Sequence[Units], gate: Gate, *, keep: float = 0.95, init: float | None = None
    ) -> None:
        super().__init__()
        self.units, self.gate = tuple(units), gate
        # Names of parameters may not hold dots.
        self.logits = nn.ParameterDict(
            {
                u.name.replace(".", "/"): nn.Parameter(
                    gate.init(u.size, keep) if init is None else torch.full((u.size,), float(init))
                )
                for u in units
            }
        )

    def _each(self, function: Callable[[Tensor], Tensor]) -> Gates:
        return {u.name: function(self.logits[u.name.replace(".", "/")]) for u in self.units}

    def sample(self, generator: torch.Generator | None = None) -> Gates:
        """Multipliers for a training step."""
        return self._each(lambda z: self.gate.sample(z, generator=generator))

    def hard(self) -> Gates:
        """Multipliers for evaluation."""
        return self._each(self.gate.hard)

    def open(self) -> Gates:
        """How much of every unit stays."""
        return self._each(self.gate.open)

    def scores(self) -> Gates:
        """Detached logits, for `select`."""
        return self._each(Tensor.detach)


def flat(gates: Gates, units: Sequence[Units]) -> Float[Tensor, "... U"]:
    """All multipliers side by side in the order of `units`; U is the sum of their sizes."""
    return torch.cat([gates[u.name] for u in units], -1)


def split(vector: Float[Tensor, "... U"], units: Sequence[Units]) -> Gates:
    """The inverse of `flat`; a router's or codebook's output enters here.

    Raises ScoreError when the vector has another length.
    """
    sizes = [u.size for u in units]
    if vector.shape[-1] != sum(sizes):
        raise ScoreError(f"vector of {vector.shape[-1]} numbers for {sum(sizes)} units")
    return {u.name: part for u, part in zip(units, vector.split(sizes, -1), strict=True)}


def open_ratio(open: Gates, units: Sequence[Units], kind: str = "params") -> Float[Tensor, "..."]:
    """Fraction of the prunable cost that stays, in [0, 1].

    R = Σ_g c_g Σ_i o_gi o_parent(g) / Σ_g c_g n_g     (APTP 2406.12042, with c = MACs)

    Differentiable in `open`. Leading dimensions (one row per sample) are kept. Raises ScoreError
    naming the group when `kind` was never priced.

    >>> open_ratio({"ffn": torch.tensor([1.0, 0.0])}, [Units("ffn", 2, cost={"params": 8})])
    tensor(0.5000)
    """
    kept: Tensor | float = 0.0
    total = 0.0
    parents = {u.name: u.inside for u in units}
    for u in units:
        if kind not in u.cost:
            raise ScoreError(f"units {u.name!r} have no cost of kind {kind!r}: price them first")
        stays = open[u.name].sum(-1)
        parent = u.inside
        while parent is not None:
            stays = stays * open[parent].squeeze(-1)
            parent = parents[parent]
        kept = kept + u.cost[kind] * stays
        total += u.cost[kind] * u.size
    return torch.as_tensor(kept / total)
