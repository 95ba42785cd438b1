"""One calibration pass at the sites: what every score that looks at data is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core import Gates, Units, watched
from ..core.apply import Reads
from ..engine.ranks import of_all_ranks
from ..errors import ScoreError, SiteError
from ._padding import counted


@dataclass(frozen=True, slots=True)
class Stats:
    """What `observe` saw, float32. Per reader, shape (in_features,); per units, shape (n,).

    mean, square, variance, absolute: E[x], E[x^2], Var[x], E|x| over `count` tokens (or pixels).
    gradient: mean over batches of dL/dg at g = 1, L the batch's mean loss; gate_grad: of |dL/dg|;
    both weigh batches by their samples, so that `gradient` does not depend on how samples are
    batched. gate_square: mean over samples of (dL_sample/dg)^2. Without a loss these are empty.
    """

    count: int
    mean: dict[str, Tensor]
    square: dict[str, Tensor]
    variance: dict[str, Tensor]
    absolute: dict[str, Tensor]
    gradient: Gates
    gate_grad: Gates
    gate_square: Gates


@dataclass(slots=True)
class _Moments:
    """Moments of one reader's input, merged in float64 (Chan, Golub & LeVeque 1983)."""

    count: int = 0
    mean: Tensor | float = 0.0
    deviation: Tensor | float = 0.0  # sum of squared deviations from the mean
    absolute: Tensor | float = 0.0

    def add(self, rows: Float[Tensor, "n f"]) -> None:
        if not len(rows):  # nothing but padding
            return
        # Float64 copies of all activations would cost more than the model's forward pass leaves:
        # what float32 rounds off of the centre is found in the deviations from it.
        x = rows.float()
        centre = x.mean(0)
        off = x - centre
        slip = off.mean(0).double()
        deviation = off.square().sum(0).double() - len(x) * slip.square()
        self.merge(_Moments(len(x), centre.double() + slip, deviation, x.abs().mean(0).double()))

    def on_cpu(self) -> _Moments:
        """Other processes have other devices."""
        each = (self.mean, self.deviation, self.absolute)
        return _Moments(self.count, *(torch.as_tensor(value).cpu() for value in each))

    def merge(self, other: _Moments) -> None:
        """Take in what was seen elsewhere."""
        if not other.count:
            return
        total = self.count + other.count
        share, gap = other.count / total, other.mean - self.mean
        between = gap * gap * (self.count * share)
        self.deviation = self.deviation + other.deviation + between
        self.mean = self.mean + gap * share
        self.absolute = self.absolute + (other.absolute - self.absolute) * share
        self.count = total


def observe(
    model: nn.Module,
    units: Sequence[Units],
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    *,
    run: Callable[[nn.Module, Any], object] | None = None,
    valid: Callable[[Any], Bool[Tensor, "b t"]] | None = None,
    also: Callable[[str, Float[Tensor, "n f"]], object] | None = None,
) -> Stats:
    """Statistics of the readers' inputs, and with a `loss` also gradients of the gates.

    In a distributed run every process gives its share of the batches, and all get the same bits.

    loss: (model, batch) -> mean over the batch's samples of their losses; run: (model, batch),
    instead of a loss when no gradients are wanted; valid: (batch) -> False for padding, which
    counts nowhere (a loss must leave it out itself); also: called with every reader's name and
    valid rows, for what no moment tells.
    Raises ScoreError without batches or when the loss is not finite, SiteError for silent sites.
    """
    if (loss is None) == (run is None):
        raise ScoreError("observe takes either a loss or a run function")
    watch = _Watch(units, gradients=loss is not None, also=also)
    with watched(model, units, watch.multiplier_at), torch.set_grad_enabled(loss is not None):
        for batch in batches:
            watch.valid = None if valid is None else valid(batch)
            if loss is not None:
                watch.differentiate(loss(model, batch))
            elif run is not None:
                run(model, batch)
            watch.batches += 1
    watch.join()
    return watch.stats()


class _Watch:
    def __init__(
        self, units: Sequence[Units], *, gradients: bool, also: Callable[..., object] | None
    ) -> None:
        self._gradients, self._also = gradients, also
        self._moments: dict[str, _Moments] = {}
        self._leaves: list[tuple[str, Tensor]] = []
        self._sums: tuple[dict[str, Tensor], ...] = tuple(
            {u.name: torch.zeros(u.size, dtype=torch.float64) for u in units if u.reads}
            for _ in range(3)
        )
        self.valid: Tensor | None = None
        self.batches = self._samples = 0

    def multiplier_at(self, name: str, reads: Reads) -> Callable[[Tensor, int], Tensor | None]:
        """Looks at a reader's input; its multiplier is all ones, as leaves of the graph."""
        moments = self._moments.setdefault(name, _Moments())

        def multiplier(x: Tensor, dim: int) -> Tensor | None:
            last = x.detach().movedim(dim, -1)
            rows, valid = last.reshape(-1, last.shape[-1]), counted(last.shape, self.valid)
            rows = rows if valid is None else rows[valid]
            moments.add(rows)
            if self._also is not None:
                self._also(name, rows)
            if not self._gradients:
                return None
            ones = torch.ones(len(x), x.shape[dim], device=x.device)
            for u, cut in reads:
                g = torch.ones(len(x), u.size, device=x.device, requires_grad=True)
                self._leaves.append((u.name, g))
                columns = cut.slots(torch.arange(u.size, device=x.device))
                ones = ones.index_copy(1, columns, g.repeat_interleave(cut.chunk, 1))
            shape = [len(x), *(1 for _ in x.shape[1:])]
            shape[dim] = x.shape[dim]
            return ones.to(x.dtype).view(shape)

        return multiplier

    def differentiate(self, loss: Tensor) -> None:
        """Add this batch's gradients at the gates."""
        if not bool(loss.isfinite()):
            raise ScoreError(f"the calibration loss is {float(loss.detach())}: check the data")
        leaves, self._leaves = self._leaves, []
        found = torch.autograd.grad(loss, [g for _, g in leaves], allow_unused=True)
        each: dict[str, Tensor] = {}
        for (name, _), grad in zip(leaves, found, strict=True):
            if grad is not None:
                each[name] = grad.double().cpu() + each.get(name, 0.0)
        signed, absolute, square = self._sums
        for name, rows in each.items():
            # A mean loss divides each sample's by their number.
            signed[name] += len(rows) * rows.sum(0)
            absolute[name] += len(rows) * rows.sum(0).abs()
            square[name] += (len(rows) * rows).square().sum(0)
        self._samples += max(map(len, each.values()), default=0)

    def join(self) -> None:
        """Take in what the other processes of a distributed run saw."""
        mine = {name: m.on_cpu() for name, m in self._moments.items()}
        seen = of_all_ranks((mine, self._sums, self._samples, self.batches))
        if len(seen) == 1:
            return
        self._moments = {name: _Moments() for name in self._moments}
        for moments, *_ in seen:
            for name, one in moments.items():
                self._moments[name].merge(one)
        kinds = zip(*(sums for _, sums, _, _ in seen), strict=True)
        self._sums = tuple({n: sum(e[n] for e in each) for n in each[0]} for each in kinds)
        self._samples = sum(samples for _, _, samples, _ in seen)
        self.batches = sum(batches for *_, batches in seen)

    def stats(self) -> Stats:
        if not self.batches:
            raise ScoreError("there was no calibration batch: give at least one")
        silent = [name for name, m in self._moments.items() if not m.count]
        if silent:
            raise SiteError(f"{silent[0]} was never called: there is nothing to observe")
        seen = self._moments.items()
        mean = {n: torch.as_tensor(m.mean) for n, m in seen}
        variance = {n: torch.as_tensor(m.deviation) / m.count for n, m in seen}
        sums = self._sums if self._gradients else ({}, {}, {})
        signed, absolute, square = (
            {n: (total / max(1, self._samples)).float() for n, total in each.items()}
            for each in sums
        )
        return Stats(
            count=max((m.count for _, m in seen), default=0),
            mean={n: v.float() for n, v in mean.items()},
            square={n: (variance[n] + v.square()).float() for n, v in mean.items()},
            variance={n: v.float() for n, v in variance.items()},
            absolute={n: torch.as_tensor(m.absolute).float() for n, m in seen},
            gradient=signed,
            gate_grad=absolute,
            gate_square=square,
        )
