"""The lookup in tiny-cuda-nn: one single-level encoding per level, in this package's convention.

tiny-cuda-nn places a point at scale * x' + 0.5, scale = base_resolution - 1, on a lattice of
base_resolution vertices per axis; this package places it at p = x N. With x' = (p - 0.5) / scale
both agree, and with scale = 2^k >= N they agree exactly: p - 0.5 has no rounding error for
p >= 0.5 and one below 2^-25 under it, the division has none, and the sum is never negative, so
no vertex -1 is read. At p = N the vertex N + 1 gets weight 0.
A hashed level does not use the resolution in its index (same primes, same modulus), so any
2^k >= N serves. A dense level does: its entries are spread over the (2^k + 1)^3 lattice.

The table is copied into tiny-cuda-nn's parameters on every forward, gradients are copied out.
Written from tiny-cuda-nn's source (encodings/grid.h, common_device.h) and tested against a
stand-in of it. On the one GPU there was, an H200, a build of version 2.0 for torch 2.11 and CUDA 13
crashed inside the library on its own first example, so this has not been run on a GPU.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BackendError
from . import reference, triton
from ._levels import Levels


@functools.cache
def _library() -> tuple[Any, str | None]:
    # It raises OSError when it was built for another GPU, or when there is none.
    try:
        return importlib.import_module("tinycudann"), None
    except (ImportError, OSError) as error:
        return None, " ".join(str(error).split()) or type(error).__name__


def usable() -> str | None:
    """None, or tiny-cuda-nn's own message why it does not import."""
    return _library()[1]


def _ranked() -> ModuleType:
    """The backend for ranked levels, which tiny-cuda-nn does not have."""
    return triton if triton.usable() is None else reference


@dataclass(frozen=True, slots=True)
class _Encoder:
    """One level: its encoding, and which of its entries are rows first .. first+count-1."""

    encoding: Any
    cells: int
    scale: int
    first: int
    count: int
    rows: Int[Tensor, "count"] | None

    def load(self, table: Float[Tensor, "entries features"]) -> None:
        own = self.encoding.params.data.view(-1, table.shape[1])
        part = table.detach()[self.first : self.first + self.count]
        if self.rows is None:
            own[: self.count].copy_(part)
        else:
            own[self.rows] = part.to(own.dtype)

    def place(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        return (x.detach().clamp(0, 1) * self.cells - 0.5) / self.scale


def _lattice(cells: int, scale: int, device: torch.device) -> Int[Tensor, "count"]:
    """Where the (N+1)^3 vertices of a dense level lie among (scale+1)^3, x fastest."""
    axis, side = torch.arange(cells + 1, device=device), scale + 1
    return (axis + side * (axis[:, None] + side * axis[:, None, None])).reshape(-1)


def _encoder(levels: Levels, level: int, device: torch.device) -> _Encoder:
    cells, dense = levels.resolutions[level], levels.dense(level)
    scale = 1 << (cells - 1).bit_length()
    config = {
        "otype": "DenseGrid" if dense else "HashGrid",
        "n_levels": 1,
        "n_features_per_level": levels.features,
        "log2_hashmap_size": levels.sizes[level].bit_length() - 1,
        "base_resolution": scale + 1,
        # Its default for a dense grid divides by n_levels - 1.
        "per_level_scale": 1.0,
        "interpolation": "Linear",
    }
    encoding = _library()[0].Encoding(3, config, dtype=torch.float32).to(device)
    # Entries outside the cube are read with weight 0: they must be finite.
    encoding.params.data.zero_()
    count = (cells + 1) ** 3 if dense else levels.sizes[level]
    rows = _lattice(cells, scale, device) if dense and scale != cells else None
    return _Encoder(encoding, cells, scale, levels.offsets[level], count, rows)


# An encoder holds a copy of its level on the GPU: few are kept.
@functools.lru_cache(maxsize=4)
def _encoders(levels: Levels, device: torch.device) -> tuple[_Encoder, ...]:
    if levels.features not in (1, 2, 4, 8):
        raise BackendError(
            f"tiny-cuda-nn has 1, 2, 4 or 8 features per level, not {levels.features}: "
            "use the triton or the reference backend"
        )
    return tuple(_encoder(levels, i, device) for i in range(len(levels.resolutions)))


@torch.no_grad()
def forward(
    table: Float[Tensor, "entries features"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    ranks: Int[Tensor, "vertices"] | None = None,
) -> Float[Tensor, "n width"]:
    """Features of all levels side by side."""
    if ranks is not None:
        return _ranked().forward(table, x, levels, ranks)  # type: ignore[no-any-return]
    if len(x) == 0:
        return table.new_empty(0, levels.width)
    parts = []
    for encoder in _encoders(levels, x.device):
        encoder.load(table)
        parts.append(encoder.encoding(encoder.place(x)).to(table.dtype))
    return torch.cat(parts, -1)


def backward(
    upstream: Float[Tensor, "n width"],
    x: Float[Tensor, "n 3"],
    levels: Levels,
    grad: Float[Tensor, "entries features"],
    ranks: Int[Tensor, "vertices"] | None = None,
) -> None:
    """Adds d(loss)/d(table) to `grad`."""
    if ranks is not None:
        _ranked().backward(upstream, x, levels, grad, ranks)
        return
    if len(x) == 0:
        return
    features = levels.features
    for level, encoder in enumerate(_encoders(levels, x.device)):
        part = upstream[:, level * features : (level + 1) * features]
        # The gradient of the table does not depend on its values: no load() here.
        with torch.enable_grad():
            out = encoder.encoding(encoder.place(x))
        params = encoder.encoding.params
        (flat,) = torch.autograd.grad(out, params, part.to(out.dtype).contiguous())
        own = flat.view(-1, features)
        own = own[: encoder.count] if encoder.rows is None else own[encoder.rows]
        grad[encoder.first : encoder.first + encoder.count] += own.to(grad.dtype)
