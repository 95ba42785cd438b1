"""Convolutions over the grid of patches, some of which may be gone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ...core.tokens import gather_tokens, scatter_tokens
from ..holes import Holes


def as_map(x: Float[Tensor, "b l d"], grid: tuple[int, int]) -> Float[Tensor, "b d rows columns"]:
    """Tokens, row by row, as pictures of channels."""
    # Not unflatten: under `torch.export` its result has sizes that are not known.
    turned = x.transpose(1, 2)
    return turned.reshape(*turned.shape[:2], *grid)


def as_tokens(x: Float[Tensor, "b d rows columns"]) -> Float[Tensor, "b _l d"]:
    """Pictures of channels as tokens, row by row."""
    return x.flatten(2).transpose(1, 2)


def convolve_on_grid(
    conv: nn.Module, x: Float[Tensor, "b l d"], grid: tuple[int, int], holes: Holes | None
) -> Float[Tensor, "b l d"]:
    """The convolution's values at the tokens that are left; it sees zeros where tokens are gone."""
    if holes is None:
        return as_tokens(conv(as_map(x, grid)))
    high, wide = holes.grid
    whole = scatter_tokens(x, holes.positions, high * wide)
    return gather_tokens(as_tokens(conv(as_map(whole, holes.grid))), holes.positions)
