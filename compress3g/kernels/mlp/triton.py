"""The perceptron in Triton: a block of samples goes through all layers in one program.

Hidden activations never reach memory, backward computes them again. Gradients of weights are summed
by each program over its blocks and then over programs in a fixed order: runs agree bit for bit.
Products are cut to TF32 and summed in float32: outputs are off by 2e-3 of their norm, as with half
precision but without its narrow range, gradients by 1e-2 to 2e-2, since hidden units near zero
switch (the same with the library's TF32); the reference multiplies as torch is told to. Networks of
one or two hidden layers up to width 64 run here, others in the reference. CPU tensors are accepted
only under Triton's interpreter, which computes in float32 (TRITON_INTERPRET=1 before the first
import).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .. import _triton
from .._triton import check, jit, on, tl, triton
from . import reference
from ._mlp import padded

_FORWARD_BLOCK, _BACKWARD_BLOCK = 64, 32  # samples; shared memory holds twice the layers backward
_PROGRAMS = 256  # of backward: partial sums of the gradients of weights
_WIDEST = 64


def usable() -> str | None:
    """None, or why Triton cannot run here."""
    reason = _triton.usable()
    if reason is None and torch.cuda.is_available():
        if torch.version.hip is not None:
            return "written for NVIDIA GPUs"
        major, minor = torch.cuda.get_device_capability()
        if major < 8:
            return f"TF32 needs compute capability 8.0, this GPU has {major}.{minor}"
    return reason


@jit
def _places(  # type: ignore[no-untyped-def]
    matrix, first, rows, columns: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A tile of [rows, columns] from row `first` on: where its numbers are, and which exist."""
    row, column = first + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return matrix + row.to(tl.int64) * columns + column, (row < rows) & (column < columns)


@jit
def _load(  # type: ignore[no-untyped-def]
    matrix, first, rows, columns: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    place, inside = _places(matrix, first, rows, columns, ROWS, COLUMNS)
    return tl.load(place, mask=inside, other=0.0)


@jit
def _store(  # type: ignore[no-untyped-def]
    matrix, value, first, rows, columns: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    place, inside = _places(matrix, first, rows, columns, ROWS, COLUMNS)
    tl.store(place, value, mask=inside)


@jit
def _relu(x):  # type: ignore[no-untyped-def]
    return tl.where(x < 0.0, 0.0, x)  # NaN stays


@jit
def _product(a, b):  # type: ignore[no-untyped-def]
    return tl.dot(a, b, input_precision="tf32")


@jit
def _forward(  # type: ignore[no-untyped-def]
    x, w1, w2, w3, out, n,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    X: tl.constexpr, Y: tl.constexpr, DEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * BLOCK
    h = _load(x, start, n, X, BLOCK, T0)
    h = _relu(_product(h, tl.trans(_load(w1, 0, N1, N0, T1, T0))))
    if DEEP:
        h = _relu(_product(h, tl.trans(_load(w2, 0, N2, N1, T2, T1))))
    y = _product(h, tl.trans(_load(w3, 0, N3, N2, T3, T2)))
    # 0 times NaN would fill the columns behind the last one.
    y = tl.where(tl.arange(0, T3)[None, :] < N3, y, 0.0)
    _store(out, y, start, n, Y, BLOCK, T3)


@jit
def _backward(  # type: ignore[no-untyped-def]
    upstream, x, w1, w2, w3, sums, x_grad, n, programs,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    X: tl.constexpr, Y: tl.constexpr, DEEP: tl.constexpr, BLOCK: tl.constexpr, NEED: tl.constexpr,
):  # fmt: skip
    # Weights are loaded where they are needed: kept, they would fill the shared memory.
    program = tl.program_id(0)
    sum1, sum2 = tl.zeros((T1, T0), tl.float32), tl.zeros((T2, T1), tl.float32)
    sum3 = tl.zeros((T3, T2), tl.float32)
    for start in range(program * BLOCK, n, programs * BLOCK):
        h0 = _load(x, start, n, X, BLOCK, T0)
        h1 = _relu(_product(h0, tl.trans(_load(w1, 0, N1, N0, T1, T0))))
        h2 = h1
        if DEEP:
            h2 = _relu(_product(h1, tl.trans(_load(w2, 0, N2, N1, T2, T1))))
        # Columns behind the last output are no outputs: what comes from there does not count.
        place, inside = _places(upstream, start, n, Y, BLOCK, T3)
        g = tl.load(place, mask=inside & (tl.arange(0, T3)[None, :] < N3), other=0.0)
        sum3 += _product(tl.trans(g), h2)
        g = tl.where(h2 > 0.0, _product(g, _load(w3, 0, N3, N2, T3, T2)), 0.0)
        if DEEP:
            sum2 += _product(tl.trans(g), h1)
            g = tl.where(h1 > 0.0, _product(g, _load(w2, 0, N2, N1, T2, T1)), 0.0)
        sum1 += _product(tl.trans(g), h0)
        if NEED:
            _store(x_grad, _product(g, _load(w1, 0, N1, N0, T1, T0)), start, n, X, BLOCK, T0)
    sums += program * (N1 * N0 + DEEP * N2 * N1 + N3 * N2)
    _store(sums, sum1, 0, N1, N0, T1, T0)
    sums += N1 * N0
    if DEEP:
        _store(sums, sum2, 0, N2, N1, T2, T1)
        sums += N2 * N1
    _store(sums, sum3, 0, N3, N2, T3, T2)


def _fits(weights: Sequence[Tensor]) -> bool:
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    return len(weights) in (2, 3) and max(widths) <= _WIDEST


def _settings(weights: Sequence[Tensor]) -> dict[str, int]:
    """Widths N of the layers, T of their tiles (powers of 2 from 16), X and Y of the buffers."""
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    if len(weights) == 2:
        widths.insert(2, widths[1])  # a middle layer that is not there
    tiles = [max(16, triton.next_power_of_2(width)) for width in widths]
    return {
        **{f"N{i}": width for i, width in enumerate(widths)},
        **{f"T{i}": tile for i, tile in enumerate(tiles)},
        "X": padded(widths[0]),
        "Y": padded(widths[-1]),
        "DEEP": int(len(weights) == 3),
    }


def forward(
    x: Float[Tensor, "n in_padded"],
    weights: Sequence[Float[Tensor, "_out _in"]],
    *,
    keep_hidden: bool,
) -> tuple[Float[Tensor, "n out_padded"], list[Tensor]]:
    """Output; no hidden activations, which `backward` does not need."""
    if not _fits(weights):
        return reference.forward(x, weights, keep_hidden=keep_hidden)
    x, layers = x.detach().contiguous(), [w.detach().contiguous() for w in weights]
    check(x, *layers)
    out = x.new_empty(len(x), padded(weights[-1].shape[0]))
    if len(x):
        with on(x.device):
            _forward[(triton.cdiv(len(x), _FORWARD_BLOCK),)](
                *(x, layers[0], layers[1], layers[-1], out, len(x)),
                **_settings(layers),
                BLOCK=_FORWARD_BLOCK,
            )
    return out, []


def backward(
    upstream: Float[Tensor, "n out_padded"],
    x: Float[Tensor, "n in_padded"],
    weights: Sequence[Float[Tensor, "_out _in"]],
    hidden: Sequence[Tensor],
    *,
    need_input: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients of the input (None unless needed) and of every weight."""
    if not _fits(weights):
        return reference.backward(upstream, x, weights, hidden, need_input=need_input)
    x, layers = x.detach().contiguous(), [w.detach().contiguous() for w in weights]
    upstream = upstream.contiguous()
    check(upstream, x, *layers)
    sizes = [w.numel() for w in layers]
    programs = max(1, min(_PROGRAMS, triton.cdiv(len(x), _BACKWARD_BLOCK)))
    sums = x.new_empty(programs, sum(sizes))
    x_grad = torch.empty_like(x) if need_input else None
    with on(x.device):
        _backward[(programs,)](
            *(upstream, x, layers[0], layers[1], layers[-1], sums, x_grad, len(x), programs),
            **_settings(layers),
            BLOCK=_BACKWARD_BLOCK,
            NEED=need_input,
            num_stages=1,  # loads ahead would fill the shared memory
        )
    grads = torch.split(sums.sum(0), sizes)
    return x_grad, [g.view_as(w) for g, w in zip(grads, layers, strict=True)]
