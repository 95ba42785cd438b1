"""Where pruned tokens were, and what the layers after them do about it (2409.18962)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.tokens import scatter_tokens

if TYPE_CHECKING:
    from .models.bimamba import Scanned
    from .models.cross_scan import Lines

Align = Literal[
    "none", "hold", "current", "previous", "mean", "bias", "recorded", "learned", "masked", "size"
]
ConvAlign = Literal["none", "zero", "hold"]

_IN_KERNEL = ("current", "previous", "mean", "bias")


@dataclass(frozen=True, kw_only=True)  # without slots: gaps are computed once per prune point
class Holes:
    """Kept tokens of every image by their original index, and the rules for what lies between.

    align: the decay G_k over the hole before token k. `none` and `hold` have none: the state after
    a hole is that of the kept token before it. `current` takes gap * Delta_k, `previous`
    gap * Delta of the kept token before, `mean` gap * the mean Delta of the row, `bias`
    gap * softplus(b), `recorded` the sum of the Delta that the pruned tokens had in the layer that
    pruned them, `learned` gap * Delta_k * sigmoid(g). `masked` runs all positions with u = 0 in
    holes: what `bias` must equal, and no faster than the dense model. `size` has no decay over
    holes: a token that stands for s of them takes a larger step, softplus(x + log(s) / 2).
    conv_align: what the convolution sees in a hole: nothing at all (`none`: neighbours close up),
    zeros, or the last kept value in scan order (`hold`).
    """

    positions: Int[Tensor, "b k"]  # ascending; those of padding lie from `length` on
    length: int  # of the sequence before pruning, class token included
    align: Align
    conv_align: ConvAlign
    max_gap: int | None = None
    valid: Bool[Tensor, "b k"] | None = None  # False for padding of images that keep fewer tokens
    recorded: tuple[Tensor, Tensor] | None = None  # decay (b, k, e) before each token, by direction
    gate: Float[Tensor, "ways e"] | None = None  # sigmoid(g) of this layer
    size: Float[Tensor, "b k"] | None = None  # tokens merged into each
    grid: tuple[int, int] = (0, 0)  # that `positions` lie on, where there is no class token

    @property
    def decays(self) -> bool:
        """Whether the scan has to know about holes."""
        return self.align not in ("none", "hold", "size")

    @cached_property
    def gaps(self) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b k"]]:
        """Positions missing before each token, in the order of each direction's scan."""
        between = self.positions.diff(dim=1) - 1
        if self.valid is not None:
            between = between.masked_fill(~self.valid[:, 1:], 0)
        if self.max_gap is not None:
            between = between.clamp_max(self.max_gap)
        none = between.new_zeros(len(between), 1)
        forward = torch.cat([none, between], dim=1)
        backward = torch.cat([between, none], dim=1)
        return forward.int(), backward.int()

    @cached_property
    def longer(self) -> Float[Tensor, "b k 1"] | None:
        """What tokens add to Delta before its softplus, for the tokens that they stand for.

        log(s) / 2: where Delta is small, softplus(x) is near exp(x) and the step grows as sqrt(s).
        As log(s) does in attention (2210.09461, 3), it makes one token weigh what several did.
        """
        if self.align != "size" or self.size is None:
            return None
        return self.size.log()[..., None] / 2

    @cached_property
    def ways(self) -> list[Any]:
        """Orders of the kept tokens in PlainMamba's scans, computed once per prune point."""
        from .models.plain_mamba import ways

        return ways(self.positions, self.grid, self.max_gap)

    @cached_property
    def lines(self) -> tuple[Lines, Lines]:
        """Rows and columns of the kept tokens, for cross scans, computed once per prune point."""
        from .models.cross_scan import lines

        return lines(self.positions, self.grid, self.max_gap)

    @cached_property
    def convolution(self) -> dict[str, Any]:
        """Arguments of `causal_conv1d` about holes."""
        if self.conv_align == "none":
            return {}
        padding = 0 if self.valid is None else self.positions.shape[1]
        return {
            "positions": self.positions.int(),
            "length": self.length + padding,
            "mode": self.conv_align,
        }

    def decay(self, direction: int, scanned: Scanned) -> dict[str, Any]:
        """Arguments of `selective_scan` about holes; most rules form G inside the kernel."""
        gap = self.gaps[direction]
        ragged = self.align == "mean" and self.valid is not None
        if self.align in _IN_KERNEL and not ragged:
            return {"gap": gap, "gap_mode": self.align}
        if self.align == "recorded":
            return {} if self.recorded is None else {"gap": self.recorded[direction]}
        delta = scanned.delta
        if ragged:  # the mean is over tokens, padding left out
            assert self.valid is not None
            mean = delta.sum(1, keepdim=True) / self.valid.sum(1)[:, None, None]
            return {"gap": gap[..., None] * mean}
        assert self.gate is not None
        return {"gap": gap[..., None] * delta * self.gate[direction]}

    def decay_by(
        self, gap: Int[Tensor, "b k"], way: int, raw: Tensor, bias: Tensor
    ) -> dict[str, Any]:
        """Arguments of `selective_scan` about holes that the scan number `way` meets as `gap`."""
        if self.align == "learned":
            assert self.gate is not None
            return {"gap": gap[..., None] * F.softplus((raw + bias).float()) * self.gate[way]}
        return {"gap": gap, "gap_mode": self.align}

    def run_whole(
        self, scan: Callable[..., Any], s: Scanned, a: Tensor, z: Tensor, settings: dict[str, Any]
    ) -> Any:
        """The scan over all positions, u = 0 and Delta = softplus(b) in holes, then gathered."""
        size = self.length if self.valid is None else self.length + self.positions.shape[1]
        index = self.positions
        whole = [scatter_tokens(t, index, size) for t in (s.u, s.raw_delta, s.B, s.C, z)]
        u, delta, b, c, gate = whole
        out = scan(u, delta, a, b, c, s.parameters.skip, gate, **settings)
        pick = index[..., None].expand(-1, -1, u.shape[2])
        if isinstance(out, tuple):
            return tuple(o.gather(1, pick) for o in out)
        return out.gather(1, pick)


def record(
    before: tuple[Tensor, Tensor] | None,
    deltas: tuple[Float[Tensor, "b l e"], Float[Tensor, "b l e"]],
    index: Int[Tensor, "b k"],
) -> tuple[Float[Tensor, "b k e"], Float[Tensor, "b k e"]]:
    """Decay before each token of `index`, per direction: the Delta of all tokens in the hole.

    before: the decay that earlier prune points recorded before each of the l tokens; a hole that
    grows keeps what it had.
    """
    size = deltas[0].shape[1]
    made = []
    for way, delta in enumerate(deltas):
        old = delta.new_zeros(delta.shape) if before is None else before[way]
        at = index
        if way:  # backward: the same sums from the other end
            delta, old, at = delta.flip(1), old.flip(1), size - 1 - index.flip(1)
        until = (delta + old).cumsum(1) - delta  # holes and tokens before this one
        through = until + delta
        pick = at[..., None].expand(-1, -1, delta.shape[2])
        last = through.gather(1, pick)[:, :-1]
        first = until.gather(1, pick)
        hole = torch.cat([torch.zeros_like(first[:, :1]), first[:, 1:] - last], dim=1)
        made.append(hole.flip(1) if way else hole)
    return made[0], made[1]
