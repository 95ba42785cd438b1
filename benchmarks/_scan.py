"""What both benchmarks of the selective scan share: its inputs, its calls, a line per ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compress3g.kernels.selective_scan import selective_scan
from compress3g.profile.clock import compare

STATES, TAPS = 16, 4
Run = Callable[[], Any]
Arguments = dict[str, torch.Tensor]


def arguments(batch: int, tokens: int, channels: int, device: str = "cpu") -> Arguments:
    """Random inputs with the step sizes of an initialised Vim: softplus(delta + bias) near 0.01."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    made = {
        "u": normal(batch, tokens, channels),
        "delta": normal(batch, tokens, channels),
        "A": -torch.arange(1.0, STATES + 1).expand(channels, STATES).clone(),
        "B": normal(batch, tokens, STATES),
        "C": normal(batch, tokens, STATES),
        "D": torch.ones(channels),
        "z": normal(batch, tokens, channels),
        "delta_bias": normal(channels) - 4.6,
    }
    return {name: t.to(device) for name, t in made.items()}


def scan(x: Arguments, backend: str, **options: Any) -> torch.Tensor:
    """The package's operator with one backend."""
    out: torch.Tensor = selective_scan(**x, delta_softplus=True, backend=backend, **options)
    return out


def backward_of(run: Callable[[Arguments], torch.Tensor], x: Arguments) -> Run:
    """Forward and backward, gradients of every argument; the result has the shape of u."""
    leaves = {k: v.clone().requires_grad_() for k, v in x.items()}
    upstream = torch.randn(x["u"].shape, generator=torch.Generator().manual_seed(1)).to(x["u"])
    return lambda: torch.autograd.grad(run(leaves), list(leaves.values()), upstream)


def ratio(name: str, ours: Run, peer: Run, seconds: float, **how: Any) -> dict[str, Any]:
    """Peer's time over ours, printed; how: `device` and `clock` of `compare`."""
    found = compare(ours, peer, seconds=seconds, **how)
    print(
        f"{name:58}{found.a.p50:>9.3f}{found.b.p50:>10.3f} ms{found.median:>9.3f}x"
        f"  [{found.low:.3f}, {found.high:.3f}]",
        flush=True,
    )
    return {
        "ours_ms": found.a.p50,
        "peer_ms": found.b.p50,
        "ratio": found.median,
        "low": found.low,
        "high": found.high,
    }
