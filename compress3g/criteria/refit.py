"""Closed-form refit: what stays takes over, as well as a linear map can, what goes.

Each reader's kept inputs predict its removed ones by ridge regression on calibration data, and the
prediction is folded into its weight: layer-wise least squares, as methods of the OBS family have it
(2510.06751). One pass, no training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core import Keep, Units, watched
from ..core._layout import layout_of
from ..core.apply import Reads, readers
from ..errors import ConfigError, ScoreError, SiteError


@torch.no_grad()
def refit(
    model: nn.Module,
    units: Sequence[Units],
    keep: Keep,
    batches: Callable[[], Iterable[Any]],
    *,
    run: Callable[[nn.Module, Any], object],
    ridge: float = 1e-3,
    memory: int = 4 << 30,
) -> None:
    """Changes the readers' kept columns and biases in place; `core.materialize` cuts afterwards.

        x_gone ~ A x_kept + b,   W_kept += W_gone A,   bias += W_gone b
        A = S_gk (S_kk + ridge mean(diag S_kk) I)^-1,  S the covariance of the dense model's inputs

    For linear layers this is the least squares fit of the layer's dense output (with ridge 0); for
    convolutions that of its input, exact but for the bias at zero-padded borders. Readers without a
    bias get none, then S is the second moment about 0.

    batches: gives the calibration data anew whenever it is called, once per pass; run: (model,
    batch), any number of forwards. memory: bytes of all matrices S of a pass, as many passes as it
    takes. Raises ScoreError without data, SiteError for a reader that was never called.
    """
    if not ridge >= 0:
        raise ConfigError(f"a ridge of {ridge} is negative")
    folded: list[tuple[Tensor, Tensor]] = []
    for table in _passes(model, units, keep, memory):
        moments = {name: _Moments() for name in table}
        names = {u.name for reads in table.values() for u, _ in reads}
        watch = _watcher(moments)
        # Sites of other readers of the same units are watched too, and ignored.
        with watched(model, [u for u in units if u.name in names], watch):
            ran = [run(model, batch) for batch in batches()]
        if not ran:
            raise ScoreError("there was no calibration batch to refit with: give at least one")
        for name, reads in table.items():
            if not moments[name].count:
                raise SiteError(f"{name} was never called: there is nothing to refit it with")
            folded += _folded(model, name, reads, keep, moments[name], ridge)
    # Only now: until the cut readers count what they took over twice, which passes would see.
    for parameter, new in folded:
        parameter.copy_(new)


class _Moments:
    """Sums of x and x x^T, in float32 or better, about the mean of the first batch."""

    def __init__(self) -> None:
        self.count = 0
        self.origin = self.sum = self.product = torch.empty(0)

    def add(self, rows: Float[Tensor, "n f"]) -> None:
        x = rows.float() if rows.dtype != torch.float64 else rows
        if not self.count:
            self.origin = x.mean(0)
            self.sum = torch.zeros_like(self.origin)
            self.product = x.new_zeros(x.shape[1], x.shape[1])
        x = x - self.origin
        self.count += len(x)
        self.sum += x.sum(0)
        self.product.addmm_(x.T, x)

    def mean(self) -> Float[Tensor, "f"]:
        """E[x], float64."""
        return self.origin.double() + self.sum.double() / self.count

    def covariance(self) -> Float[Tensor, "f f"]:
        """E[x x^T] - E[x] E[x]^T, float64."""
        shift = self.sum.double() / self.count
        return self.product.double() / self.count - torch.outer(shift, shift)


def _watcher(moments: dict[str, _Moments]) -> Callable[..., Callable[[Tensor, int], None]]:
    def watcher(name: str, reads: Reads) -> Callable[[Tensor, int], None]:
        def look(x: Tensor, dim: int) -> None:
            if name in moments:
                moments[name].add(x.movedim(dim, -1).reshape(-1, x.shape[dim]))

        return look

    return watcher


def _passes(
    model: nn.Module, units: Sequence[Units], keep: Keep, memory: int
) -> Iterator[dict[str, Reads]]:
    """Readers that lose columns, as many at a time as `memory` holds."""
    table: dict[str, Reads] = {}
    used = 0
    for name, reads in readers(units).items():
        if all(len(keep[u.name]) == u.size for u, _ in reads):
            continue
        size = 4 * layout_of(model, name).size("in") ** 2
        if table and used + size > memory:
            yield table
            table, used = {}, 0
        table[name] = reads
        used += size
    if table:
        yield table


def _folded(
    model: nn.Module, name: str, reads: Reads, keep: Keep, moments: _Moments, ridge: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """A reader's weight and bias, each with its new values."""
    layout = layout_of(model, name)
    ((tensor, dim),) = layout.tensors["in"]
    weight: Tensor = getattr(layout.owner, tensor)
    stays = stays_of(reads, keep, weight.shape[dim])
    kept, gone = (m.nonzero()[:, 0].to(weight.device) for m in (stays, ~stays))
    bias = getattr(layout.owner, "bias", None)
    if type(layout.owner).__name__.startswith("ConvTranspose"):
        bias = None  # with a stride, outputs get different numbers of taps
    mean, second = moments.mean(), moments.covariance()
    if bias is None:
        second = second + torch.outer(mean, mean)
    own = second[kept][:, kept]
    own.diagonal().add_(ridge * own.diagonal().mean())
    a = solve(own, second[kept][:, gone]).T  # [gone, kept]
    columns = weight.to(torch.float64, copy=True).movedim(dim, -1)  # [outputs, taps ..., features]
    lost_columns = columns[..., gone]
    columns[..., kept] += lost_columns @ a
    yield weight, columns.movedim(-1, dim).to(weight.dtype)
    if bias is not None:
        shift = lost_columns @ (mean[gone] - a @ mean[kept])
        yield bias, bias + shift.reshape(len(bias), -1).sum(1).to(bias.dtype)


def stays_of(reads: Reads, keep: Keep, features: int) -> Bool[Tensor, "f"]:
    """Which of a reader's inputs stay."""
    stays = torch.ones(features, dtype=torch.bool)
    for u, cut in reads:
        gone = torch.ones(u.size).index_fill(0, keep[u.name].cpu(), 0).nonzero()[:, 0]
        stays[cut.slots(gone)] = False
    return stays


def solve(own: Float[Tensor, "k k"], right: Float[Tensor, "k g"]) -> Float[Tensor, "k g"]:
    """own^-1 right; the least squares solution of least norm where `own` is singular."""
    factor, failed = torch.linalg.cholesky_ex(own)
    if not int(failed):
        return torch.cholesky_solve(right, factor)
    inverse: Tensor = torch.linalg.pinv(own, hermitian=True)
    return inverse @ right
