"""Packed samples of a bundle of rays, whichever backend finds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ...errors import ConfigError
from ..cost import spend
from ..registry import pick

_MOST_CELLS = 1290


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of r rays one after the other; those of ray r are offset[r] .. offset[r+1]-1."""

    x: Float[Tensor, "n 3"]
    distance: Float[Tensor, "n"]
    ray: Int[Tensor, "n"]
    offset: Int[Tensor, "bounds"]

    def __len__(self) -> int:
        return len(self.distance)


def pack_bits(cells: Bool[Tensor, "z y x"]) -> UInt8[Tensor, "bytes"]:
    """Eight cells a byte, x fastest, lowest bit first."""
    flat = cells.reshape(-1)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    place = 2 ** torch.arange(8, dtype=torch.uint8, device=cells.device)
    return (flat * place).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: UInt8[Tensor, "bytes"], side: int) -> Bool[Tensor, "z y x"]:
    """The inverse of `pack_bits` for a cube of `side` cells."""
    place = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, None] >> place & 1).bool().view(-1)[: side**3].view(side, side, side)


def march(
    origin: Float[Tensor, "r 3"],
    direction: Float[Tensor, "r 3"],
    jitter: Float[Tensor, "r"],
    bits: UInt8[Tensor, "bytes"],
    *,
    side: int,
    step: float,
    near: float = 0.0,
    limit: int = 1 << 20,
) -> Samples:
    """Samples at t = (k + jitter) step inside the unit cube, in cells whose bit is set.

    origin and direction are in units of the cube; `bits` holds side^3 cells as `pack_bits` lays
    them out; at most `limit` samples per ray, none nearer than `near`, and none on a ray that
    leaves the cube more than 2^24 steps from its origin.
    Raises ConfigError when `bits` has another size, `side` is above 1290, `step` is not positive,
    or a ray is not finite or has no direction.
    """
    if side > _MOST_CELLS:
        raise ConfigError(f"{side}^3 cells: at most {_MOST_CELLS}^3 can be counted in 31 bits")
    if len(bits) != -(-(side**3) // 8):
        raise ConfigError(
            f"{len(bits)} bytes of bits for {side}^3 cells: need {-(-(side**3) // 8)}"
        )
    if not step > 0:
        raise ConfigError(f"step between samples must be positive, got {step}")
    finite = torch.isfinite(origin) & torch.isfinite(direction) & torch.isfinite(jitter)[:, None]
    bad = int((~(finite.all(-1) & (direction != 0).any(-1))).sum())
    if bad:
        raise ConfigError(f"{bad} of {len(origin)} rays are NaN, Inf or without direction")
    with spend("ray_march", None):
        return pick("ray_march", origin.device).march(  # type: ignore[no-any-return]
            origin, direction, jitter, bits, side, step, near, limit
        )
