"""Dropout before adapters whose masks take a quarter of the memory on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .units import adapter_of, base_of, lora_layers

_LEVELS = 1 << 16  # a draw is a sixteen-bit integer: p is met to 1 / 65,536


class LightDropout(nn.Dropout):
    """The library's dropout, with draws and masks of its own on a CPU.

    There, one 64-bit draw decides about four numbers, and a mask keeps one byte for each instead of
    four: every adapted layer has a mask of its own, as wide as the residual stream. Draws
    come from torch's generator: a seed, a checkpoint and recomputation do what they do elsewhere.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zeros with probability p, the rest over 1 - p; the input itself in evaluation."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        dropped: Tensor = _Drop.apply(input, self.p)  # type: ignore[no-untyped-call]
        return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
        draws.random_(-(2**63), None)
        shorts = draws.view(torch.int16)[: x.numel()].view(x.shape)
        kept = shorts >= round(p * _LEVELS) - _LEVELS // 2
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None


def lighten_dropout(model: nn.Module) -> None:
    """Puts LightDropout before every adapter of a PeftModel with one LoRA adapter, in place."""
    adapter = adapter_of(model)
    for layer in lora_layers(base_of(model), adapter).values():
        found = layer.lora_dropout[adapter]
        if type(found) is nn.Dropout:
            light = LightDropout(found.p)
            light.train(found.training)
            layer.lora_dropout[adapter] = light
