"""SS2D, the mixer of VMamba (2401.10166): row by row, column by column, and both from the end.

Functions over modules with the published names of parameters, as in `bimamba`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...core.tokens import gather_tokens
from ...kernels.selective_scan import selective_scan
from ..holes import Holes
from .bimamba import Mixed
from .grid import convolve_on_grid


@dataclass(frozen=True, slots=True)
class Lines:
    """Tokens row by row or column by column, for the scan from the front and that from the end."""

    order: Int[Tensor, "b k"]  # which token stands where in the scan from the front
    back: Int[Tensor, "b k"]
    gaps: tuple[Int[Tensor, "b k"], Int[Tensor, "b k"]]  # missing before, and after, each token


def lines(
    positions: Int[Tensor, "b k"], grid: tuple[int, int], max_gap: int | None
) -> tuple[Lines, Lines]:
    """Rows and columns of the tokens that are left; each keeps its rank in the full grid."""
    high, wide = grid
    by_column = positions % wide * high + positions // wide
    rows, columns = (
        Lines(order, order.argsort(dim=1), _gaps(rank.gather(1, order), max_gap))
        for rank in (positions, by_column)
        for order in [rank.argsort(dim=1)]
    )
    return rows, columns


def _gaps(rank: Int[Tensor, "b k"], max_gap: int | None) -> tuple[Tensor, Tensor]:
    between = rank.diff(dim=1) - 1
    between = between if max_gap is None else between.clamp_max(max_gap)
    none = between.new_zeros(len(between), 1)
    return torch.cat([none, between], 1).int(), torch.cat([between, none], 1).int()


def norm(module: Any, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """LayerNorm over the last dimension by a module's weights, whatever layout it was made for."""
    return F.layer_norm(x, module.weight.shape, module.weight, module.bias, module.eps)


def linear(module: Any, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
    """A projection by a module's weights, those of a 1x1 convolution too."""
    return F.linear(x, module.weight.flatten(1), module.bias)


def mix_cross(
    op: Any,
    x: Float[Tensor, "b l d"],
    grid: tuple[int, int],
    holes: Holes | None = None,
    *,
    inside: bool = False,
) -> tuple[Float[Tensor, "b l d"], Mixed | None]:
    """out_proj(norm(sum of four scans)); every scan has projections, Delta, A and D of its own.

    Order of the weights: rows, columns, rows from the end, columns from the end.
    """
    u = F.silu(convolve_on_grid(op.conv2d, linear(op.in_proj, x), grid, holes))
    rows = _two_scans(op, u, 0, holes, inside)
    columns = [
        _from_columns(part, grid, holes)
        for part in _two_scans(op, _to_columns(u, grid, holes), 1, holes, inside)
    ]
    y = rows[0] + columns[0]
    out = linear(op.out_proj, norm(op.out_norm, y))
    return out, Mixed(y=y, gated=y, delta=rows[1] + columns[1]) if inside else None


def _to_columns(x: Tensor, grid: tuple[int, int], holes: Holes | None) -> Tensor:
    if holes is not None:
        return gather_tokens(x, holes.lines[1].order)
    return x.reshape(len(x), *grid, x.shape[2]).transpose(1, 2).reshape(x.shape)


def _from_columns(x: Tensor, grid: tuple[int, int], holes: Holes | None) -> Tensor:
    if holes is not None:
        return gather_tokens(x, holes.lines[1].back)
    return _to_columns(x, (grid[1], grid[0]), None)


def _two_scans(
    op: Any, u: Tensor, turned: int, holes: Holes | None, inside: bool
) -> tuple[Tensor, ...]:
    """Sum over scans number `turned` and `turned + 2` of y, and `inside` of Delta too."""
    e, state = op.out_norm.weight.shape[0], op.A_logs.shape[1]
    rank = op.dt_projs_weight.shape[2]
    outputs: list[Tensor] = []
    deltas: list[Tensor] = []
    for way in (0, 1):
        k = turned + 2 * way
        own = slice(k * e, (k + 1) * e)
        r, b, c = F.linear(u, op.x_proj_weight[k]).split([rank, state, state], dim=-1)
        raw, bias = F.linear(r, op.dt_projs_weight[k]), op.dt_projs_bias[k]
        settings: dict[str, Any] = {"delta_bias": bias, "delta_softplus": True, "reverse": way == 1}
        if holes is not None and holes.decays:
            settings |= holes.decay_by(holes.lines[turned].gaps[way], k, raw, bias)
        a = -op.A_logs[own].float().exp()
        outputs.append(selective_scan(u, raw, a, b, c, op.Ds[own], **settings))
        if inside:
            deltas.append(F.softplus((raw + bias).float()))
    y = outputs[0] + outputs[1]
    return (y, deltas[0] + deltas[1]) if inside else (y,)
