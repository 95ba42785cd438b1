"""The optimiser of hash tables: numbers without a gradient keep their value and their moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..cost import spend
from ..registry import pick


class SparseAdam(torch.optim.Optimizer):
    """Adam with one global step count that skips every number whose gradient is exactly zero.

    Unlike `torch.optim.SparseAdam` it takes dense gradients, and it clears what it has read, so
    `zero_grad` is not needed (and would only cost a pass over memory).
    State per parameter: `first`, `second` (both like the parameter) and `step`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; gradients are zero afterwards."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                beta1, beta2 = group["betas"]
                with spend("adam", None):
                    pick("adam", p.device).step(
                        *(p, p.grad, state["first"], state["second"]),
                        rate=group["lr"] / (1 - beta1 ** state["step"]),
                        betas=(beta1, beta2),
                        root_correction=(1 - beta2 ** state["step"]) ** -0.5,
                        epsilon=group["eps"],
                    )
        return loss
