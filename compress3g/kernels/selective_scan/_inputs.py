"""What a scan is given, checked once for all backends, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...errors import ConfigError

GapMode = Literal["hold", "current", "previous", "mean", "bias"]
_MODES = get_args(GapMode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Arguments of one scan; B and C always have their axis of groups."""

    u: Tensor  # (b, l, e)
    delta: Tensor  # (b, l, e)
    A: Tensor  # (e, n)
    B: Tensor  # (b, g, l, n)
    C: Tensor  # (b, g, l, n)
    D: Tensor | None  # (e)
    z: Tensor | None  # (b, l, e)
    delta_bias: Tensor | None  # (e)
    gap: Tensor | None  # integers (b, l) or floats (b, l, e)
    initial_state: Tensor | None  # (b, e, n)
    delta_softplus: bool
    gap_mode: str
    reverse: bool

    @property
    def dtype(self) -> torch.dtype:
        """What is calculated in: float32 at least."""
        return torch.promote_types(self.u.dtype, torch.float32)

    def check(self) -> None:
        """Raises ConfigError on the first shape or option that does not fit the others."""
        if self.u.dim() != 3 or self.A.dim() != 2 or self.B.dim() != 4:
            raise ConfigError(
                "selective_scan needs u (b, l, e), A (e, n) and B (b, l, n) or (b, g, l, n), got "
                f"{tuple(self.u.shape)}, {tuple(self.A.shape)} and {tuple(self.B.shape)}"
            )
        b, length, e = self.u.shape
        n, groups = self.A.shape[1], self.B.shape[1]
        if n == 0 or groups == 0 or e % groups:
            raise ConfigError(f"selective_scan: {e} channels, {n} states, {groups} groups of B")
        row, channel, group = (b, length, e), (e,), (b, groups, length, n)
        self._shapes(
            ("delta", self.delta, row),
            ("A", self.A, (e, n)),
            ("B", self.B, group),
            ("C", self.C, group),
            ("D", self.D, channel),
            ("z", self.z, row),
            ("delta_bias", self.delta_bias, channel),
            ("initial_state", self.initial_state, (b, e, n)),
        )
        if self.gap is not None:
            self._check_gap(self.gap, row)

    def _shapes(self, *wanted: tuple[str, Tensor | None, tuple[int, ...]]) -> None:
        for name, tensor, shape in wanted:
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape or not tensor.is_floating_point():
                raise ConfigError(
                    f"selective_scan: {name} must be real with shape {shape} to fit u "
                    f"{tuple(self.u.shape)}, got {tensor.dtype} {tuple(tensor.shape)}"
                )
            if tensor.device != self.u.device:
                raise ConfigError(
                    f"selective_scan: {name} is on {tensor.device}, u on {self.u.device}: "
                    "move them to one device"
                )

    def _check_gap(self, gap: Tensor, row: tuple[int, ...]) -> None:
        if self.gap_mode not in _MODES:
            raise ConfigError(f"no gap_mode {self.gap_mode!r}: use {', '.join(_MODES)}")
        if gap.is_floating_point():
            self._shapes(("a float gap", gap, row))
            return
        if gap.dtype == torch.bool or tuple(gap.shape) != row[:2]:
            raise ConfigError(
                f"selective_scan: gap must be integers with shape {row[:2]}, or floats with shape "
                f"{row}, got {gap.dtype} {tuple(gap.shape)}"
            )
        if self.gap_mode == "bias" and self.delta_bias is None:
            raise ConfigError("gap_mode 'bias' needs delta_bias: pass it, or use 'current'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a backend calculated; a state that was not asked for may be empty."""

    out: Tensor  # (b, l, e), gated if there is a gate
    ungated: Tensor  # (b, l, e), before the gate
    last_state: Tensor  # (b, e, n), float32 at least
