"""Decoding and scoring in C, pages split between threads."""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float
from torch import Tensor

from .._library import POINTER, address, function, status
from .._pages import Pages
from .._parallel import parallel_for
from . import reference
from ._decoded import Decoded, Pairs, Products, Rows

_GRAIN = 8
_STREAMS = (torch.uint8, torch.int8, torch.float16)
_TABLES = (torch.float32, torch.int16)
_ROWS = 0
_KINDS = {torch.float16: 1, torch.int8: 2, torch.uint8: 3}  # HALVES, BYTES, NIBBLES


class _Decoded(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
        ("half_factor", ctypes.c_void_p),
        ("factor", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("all", ctypes.c_void_p),
        ("tokens", ctypes.c_int64),
        ("padded", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("dims", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("pitch", ctypes.c_int64),
        ("step", ctypes.c_float),
    ]


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


def _struct(decoded: Decoded, out: Tensor | None) -> _Decoded:
    stream, factor = decoded.stream, decoded.factor
    table = decoded.table if isinstance(decoded, Rows) else decoded.query
    levels = decoded.levels if isinstance(decoded, Pairs) else None
    half = factor is not None and factor.dtype == torch.float16
    return _Decoded(
        address(decoded.base),
        address(table, _TABLES),
        address(levels, _TABLES),
        address(stream, _STREAMS),
        address(factor, (torch.float16,)) if half else None,
        None if half else address(factor),
        address(decoded.scales) if isinstance(decoded, Rows) else None,
        address(out),
        decoded.tokens,
        -(-decoded.tokens // 8) * 8,
        stream.shape[1] * stream.element_size(),
        stream.shape[1] * (1 if levels is None else 2),
        _ROWS if isinstance(decoded, Rows) else _KINDS[stream.dtype],
        table.shape[-1],
        1.0 if isinstance(decoded, Products) else decoded.step,
    )


def _run(decoded: Decoded, pages: Pages, every: Tensor | None) -> Tensor:
    out = torch.empty(len(pages))
    struct, rows = _struct(decoded, every), pages.struct()
    parallel_for(
        function("residual_scan", [POINTER] * 3),
        len(pages),
        ctypes.addressof(struct),
        ctypes.addressof(rows),
        address(out),
        grain=_GRAIN,
    )
    if bool(out.isnan().any()):
        reference.refuse(decoded, pages)
    return out


def score(decoded: Decoded, pages: Pages) -> Float[Tensor, "n"]:
    """sum_t max_j; -inf for pages without vectors."""
    return _run(decoded, pages, None)


def similarities(decoded: Decoded, pages: Pages) -> Float[Tensor, "v t"]:
    """All of a single page."""
    pages.check()  # the output is as long as the page says
    assert pages.selected is not None
    page = int(pages.selected[0])
    n = int(pages.offsets[page + 1] - pages.offsets[page])
    every = torch.empty(n, decoded.tokens)
    _run(decoded, pages, every)
    return every
