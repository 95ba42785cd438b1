"""Layer by layer in one forward pass: what stays of every reader's input gives what all of it gave.

The closed form of `refit` looks at the dense model alone. Here the model runs twice at once, whole
and without what goes, and each reader is fitted to what it puts out in the whole one while it is
given what the layers before it, fitted already, leave in the other: so it also mends what they
could not (the dense targets of GPTAQ, 2504.02692, for columns that go instead of bits).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import Keep, Units
from ..core.apply import Reads, readers
from ..errors import ConfigError, SiteError
from ._padding import counted
from .refit import solve, stays_of

_ROWS = 2048  # that are turned to float64 at a time


@dataclass(frozen=True, slots=True)
class Takeover:
    """What is to be added to a linear reader whose other columns go, float32.

    kept: its columns that stay; weight: to be added to them; bias: to be added to the outputs.
    """

    kept: Int[Tensor, "k"]
    weight: Float[Tensor, "outputs k"]
    bias: Float[Tensor, "outputs"] | None


@torch.no_grad()
def takeover(
    model: nn.Module,
    units: Sequence[Units],
    keep: Keep,
    run: Callable[[nn.Module], object],
    *,
    biased: Callable[[str], bool],
    valid: Bool[Tensor, "b t"] | None = None,
    streams: Mapping[str, str] | None = None,
    ridge: float = 0.1,
) -> dict[str, Takeover]:
    """What every reader that loses columns needs, in the order of the calls; nothing is changed.

        min sum_n w_n |y_n + e_n - y'_n - D x'_n - d|^2 + ridge mean(diag S) |D|^2
        w_n ~ 1 / (|y_n + e_n|^2 + their median),  sum_n w_n = 1

    x': the columns that stay; S: their covariance, rows weighed by w as well. So rows count by
    their relative error, and a token a thousand times as large as the others is not all that is
    fitted.
    y: what the reader puts out in the whole model, y': in the cut one, on the n rows that count; e:
    the sum of what readers before it left of their own differences, where streams names one
    residual stream that the outputs of all its readers are added to; else 0.
    run: one forward of a batch whose samples are all there twice, one whole batch after the other;
    readers are linear in the rows of their input. biased: whether a reader can take a bias; else d
    is 0 and S the second moment about 0. valid: False for padding of one half of the batch, which
    counts nowhere. A reader that is called again keeps what its first call found, one that is never
    called gets nothing.
    """
    if not ridge >= 0:
        raise ConfigError(f"a ridge of {ridge} is negative")
    found: dict[str, Takeover] = {}
    table, streams = readers(units), streams or {}
    losing = {n: r for n, r in table.items() if any(len(keep[u.name]) < u.size for u, _ in r)}
    twice = None if valid is None else torch.cat((valid, valid))
    left: dict[str, list[Tensor]] = {name: [] for name in streams.values()}
    with ExitStack() as stack:
        for name in dict.fromkeys((*losing, *streams)):
            errors = left.get(streams.get(name, ""))
            if name in losing:
                fit = partial(_fit, biased=biased(name), ridge=ridge)
                hook: Callable[..., Any] = _hook(
                    name, losing[name], keep, found, errors, twice, fit
                )
            else:
                hook = partial(_follow, left[streams[name]])
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        run(model)
    return found


def _follow(errors: list[Tensor], module: Any, args: Any, out: Tensor) -> None:
    """Adds to a stream's error what a reader that loses nothing puts out otherwise."""
    rows = out.reshape(-1, out.shape[-1])
    _leave(errors, *rows.split(len(rows) // 2))


def _leave(errors: list[Tensor], whole: Tensor, mended: Tensor) -> None:
    errors[:] = [sum(errors, whole.float() - mended.float())]


def _hook(
    name: str,
    reads: Reads,
    keep: Keep,
    found: dict[str, Takeover],
    errors: list[Tensor] | None,
    twice: Tensor | None,
    fit: Callable[..., Takeover],
) -> Callable[..., Tensor]:
    """Puts in the second half of an output what the cut and mended reader says."""

    def hook(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        rows, outputs = x.reshape(-1, x.shape[-1]), out.reshape(-1, out.shape[-1])
        half = len(rows) // 2
        if len(rows) != 2 * half:
            raise SiteError(f"{name} is given {len(rows)} rows, which are no two equal halves")
        stays = stays_of(reads, keep, x.shape[-1]).to(x.device)
        cut = rows[half:] * stays
        said = module.forward(cut)
        if name not in found:
            both = counted(x.shape, twice)
            valid = torch.ones(half, dtype=torch.bool) if both is None else both[:half]
            valid = valid.to(x.device)
            kept = stays.nonzero()[:, 0]
            whole = outputs[:half] + errors[0] if errors else outputs[:half]  # float32
            found[name] = fit(cut[valid][:, kept], (whole[valid], said[valid]), kept)
        more = found[name]
        mended = said + (cut[:, more.kept] @ more.weight.T.to(cut.dtype)).to(said.dtype)
        if more.bias is not None:
            mended += more.bias.to(said.dtype)
        if errors is not None:
            _leave(errors, outputs[:half], mended)
        return torch.cat((outputs[:half], mended)).view_as(out)

    return hook


def _fit(
    x: Float[Tensor, "n k"],
    said: tuple[Float[Tensor, "n o"], Float[Tensor, "n o"]],
    kept: Int[Tensor, "k"],
    *,
    biased: bool,
    ridge: float,
) -> Takeover:
    """The ridge regression of the difference of two outputs on `x`, in float64."""
    weigh = _weights(said[0])
    own = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    other = x.new_zeros(x.shape[1], said[0].shape[1], dtype=torch.float64)
    mean, shift = own.new_zeros(x.shape[1]), other.new_zeros(said[0].shape[1])
    pairs = [*zip(*(t.split(_ROWS) for t in (x, *said, weigh)), strict=True)]
    if biased:
        mean = sum(w @ part.double() for part, _, _, w in pairs)
        shift = sum(w @ (whole.double() - left.double()) for _, whole, left, w in pairs)
    for part, whole, left, w in pairs:
        centred = part.double() - mean
        weighed = centred.T * w
        own.addmm_(weighed, centred)
        other.addmm_(weighed, whole.double() - left.double() - shift)
    own.diagonal().add_(ridge * own.diagonal().mean())
    weight = solve(own, other).T
    bias = (shift - weight @ mean).float() if biased else None
    return Takeover(kept, weight.float(), bias)


def _weights(rows: Float[Tensor, "n o"]) -> Float[Tensor, "n"]:
    """w of `takeover`, float64."""
    energy = rows.double().square().sum(1)
    weights = 1 / (energy + energy.median()).clamp_min(1e-30)
    return weights / weights.sum()
