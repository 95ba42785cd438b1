"""The radiance field: a hash grid, two small networks, and (hollow) a saliency grid in between."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..kernels.hash_grid import Levels, encode
from ..kernels.mlp import mlp, padded
from ..kernels.ray_march import pack_bits
from .gates import GateName, skip_gate
from .inside import ranks
from .saliency import SaliencyGrid

GEOMETRY = 15  # features that the density network hands to the colour network
_DENSITY_WIDTHS = (64, 1 + GEOMETRY)
_COLOUR_WIDTHS = (64, 64, 3)


class _TruncatedExp(torch.autograd.Function):
    """exp whose gradient is that of exp(clamp(h, -15, 15)): large logits keep a finite pull."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h.clamp(max=30).exp()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        grad: Tensor = upstream[0] * h.clamp(-15, 15).exp()
        return grad


def _layers(widths: Sequence[int], generator: torch.Generator) -> nn.ParameterList:
    """Weights [out, in] from U(-1/sqrt(in), 1/sqrt(in))."""
    return nn.ParameterList(
        (torch.rand(b, a, generator=generator) * 2 - 1) / a**0.5
        for a, b in itertools.pairwise(widths)
    )


class HollowField(nn.Module):
    """Density and colour of points in the unit cube.

    f = hashgrid(x);  v = p(x) f;  sigma = gate * exp(h_0(v));  c = sigmoid(MLP(h_1..15, SH(d)))
    kept: the mask that ranked levels lie inside; features outside it mean nothing.
    With no saliency grid, p = 1 and this is Instant-NGP (2201.05989); with one, HollowNeRF
    (2308.10122, section 3).
    """

    kept: Tensor | None
    ranks: Tensor | None

    def __init__(
        self,
        levels: Levels,
        *,
        kept: Bool[Tensor, "z y x"] | None = None,
        saliency: SaliencyGrid | None = None,
        gate: GateName = "p",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.levels = levels
        # The mask is saved; the ranks follow from it.
        self.register_buffer("kept", None if kept is None else pack_bits(kept))
        self.register_buffer(
            "ranks", None if kept is None else ranks(levels, kept), persistent=False
        )
        self.gate: GateName = gate
        self.alpha = 1e4  # of the tanh gate; the trainer raises it
        table = torch.rand(levels.entries, levels.features, generator=generator)
        self.table = nn.Parameter((table * 2 - 1) * 1e-4)
        self.density_layers = _layers((levels.width, *_DENSITY_WIDTHS), generator)
        self.colour_layers = _layers((GEOMETRY + 16, *_COLOUR_WIDTHS), generator)
        self.saliency = saliency

    def density(self, x: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 16"]]:
        """Density per unit-cube length, and the density network's 16 outputs."""
        v = encode(self.table, x, self.levels, ranks=self.ranks, accumulate=True)
        gate = None
        if self.saliency is not None:
            p = self.saliency(x)
            v = v * p[:, None]
            gate = skip_gate(self.gate, p, v, self.alpha)
        spare = padded(v.shape[1]) - v.shape[1]
        h = mlp(F.pad(v, (0, spare)) if spare else v, list(self.density_layers))
        sigma: Tensor = _TruncatedExp.apply(h[:, 0])  # type: ignore[no-untyped-call]
        return (sigma if gate is None else gate * sigma), h

    def colour(
        self,
        h: Float[Tensor, "n 16"],
        view: Float[Tensor, "r 16"],
        index: Int[Tensor, "m"],
        ray: Int[Tensor, "m"],
    ) -> Float[Tensor, "m 3"]:
        """Colours in [0, 1] of samples `index` of h, seen along the harmonics of rays `ray`."""
        geometry = h.index_select(0, index)[:, 1:]
        around = view.index_select(0, ray)
        x = torch.cat([geometry, around, around.new_zeros(len(around), 1)], -1)
        return mlp(x, list(self.colour_layers))[:, :3].sigmoid()

    def parameter_count(self) -> int:
        """F sum_l n_l + 9,344 (+ R^3 hollow): the rule behind HollowNeRF's Table 1."""
        return sum(p.numel() for p in self.parameters())

    def counted_bytes(self, mask_bits: int) -> dict[str, int]:
        """Bytes of these parameters in fp32 by part, and of the mask that a pruner stores."""
        networks = sum(p.numel() for p in (*self.density_layers, *self.colour_layers))
        return {
            "hash table": 4 * self.table.numel(),
            "networks": 4 * networks,
            "saliency grid": 0 if self.saliency is None else 4 * self.saliency.logits.numel(),
            "mask": mask_bits // 8,
        }
