"""How much a token is worth, from the inside of the block after which tokens go."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .models.bimamba import Mixed, Scanned

Score = Literal[
    "clip", "sum", "l1", "l2", "max", "gated", "delta", "random", "attentiveness",
    "hidden_attention", "mirrored",
]  # fmt: skip


def _clip(m: Mixed, cls: Tensor | None) -> Tensor:
    return m.y.float().relu().sum(-1)


def _sum(m: Mixed, cls: Tensor | None) -> Tensor:
    return m.y.float().sum(-1)


def _l1(m: Mixed, cls: Tensor | None) -> Tensor:
    return m.y.float().abs().sum(-1)


def _l2(m: Mixed, cls: Tensor | None) -> Tensor:
    return m.y.float().square().sum(-1).sqrt()


def _max(m: Mixed, cls: Tensor | None) -> Tensor:
    return m.y.float().amax(-1)


def _gated(m: Mixed, cls: Tensor | None) -> Tensor:
    return m.gated.float().relu().sum(-1)


def _delta(m: Mixed, cls: Tensor | None) -> Tensor:
    if m.delta is not None:
        return m.delta.mean(-1)
    return (m.scanned[0].delta + m.scanned[1].delta).mean(-1)


def _attentiveness(m: Mixed, cls: Tensor) -> Tensor:
    y = F.normalize(m.y.float(), dim=-1)
    row = torch.arange(len(y), device=y.device)
    return (y @ y[row, cls][..., None]).squeeze(-1)


def _mirrored(m: Mixed, cls: Tensor | None) -> Tensor:
    """The backward output in scan order: token m gets the score of token l - 1 - m."""
    assert m.backward_gated is not None
    return m.backward_gated.float().sum(-1).flip(1)


def _hidden_attention(m: Mixed, cls: Tensor) -> Tensor:
    return sum((_attention_of_cls(s, cls) for s in m.scanned), m.y.new_zeros(m.y.shape[:2]).float())


def _attention_of_cls(s: Scanned, cls: Int[Tensor, "b"]) -> Float[Tensor, "b l"]:
    """Mean over channels of |alpha(cls, j)|, how much token j adds to the class token's output.

    alpha(i, j) = sum_n C_i exp(A sum_(j < k <= i) Delta_k) Delta_j B_j (2403.01590, eq. 13); zero
    for tokens that the scan meets after the class token.
    """
    delta = s.delta  # (b, l, e)
    row = torch.arange(len(cls), device=cls.device)
    index = torch.arange(delta.shape[1], device=cls.device)
    if s.parameters.reverse:
        total = delta.flip(1).cumsum(1).flip(1)
        seen = index >= cls[:, None]
    else:
        total = delta.cumsum(1)
        seen = index <= cls[:, None]
    time = (total[row, cls][:, None] - total).clamp_min(0)
    a = -s.parameters.a_log.float().exp()
    weight = s.C[row, cls][:, None].float() * s.B.float()  # (b, l, n)
    alpha = torch.stack(
        [((a * t[..., None]).exp() * w[:, None]).sum(-1) for t, w in zip(time, weight, strict=True)]
    )
    return (alpha * delta).abs().mean(-1).masked_fill(~seen, 0)


# What they compare with is the class token, or the backward direction of two.
NEED_CLS = ("attentiveness", "hidden_attention", "mirrored")
_SCORES: dict[str, Callable[[Mixed, Any], Tensor]] = {
    "clip": _clip,
    "sum": _sum,
    "l1": _l1,
    "l2": _l2,
    "max": _max,
    "gated": _gated,
    "delta": _delta,
    "attentiveness": _attentiveness,
    "hidden_attention": _hidden_attention,
    "mirrored": _mirrored,
}


@functools.lru_cache(maxsize=32)
def _noise(draw: tuple[int, int], shape: tuple[int, int], device: torch.device) -> Tensor:
    """From the CPU, so that all devices keep the same tokens; a captured graph finds it made."""
    seed, point = draw
    generator = torch.Generator().manual_seed(seed + (point << 32))
    return torch.rand(shape, generator=generator).to(device)


def score_tokens(
    kind: Score,
    mixed: Mixed,
    cls: Int[Tensor, "b"] | None,
    draw: tuple[int, int] = (0, 0),
) -> Float[Tensor, "b l"]:
    """Scores of all tokens in float32, detached; higher stays.

    y is the scan's output with D u and before the gate, summed over directions (2409.18962).
    `clip` sums max(0, y) over channels, `sum` y, `l1` |y|, `l2` and `max` as they say; `gated`
    clips y * silu(z); `delta` is the mean step; `attentiveness` the cosine with the class token;
    `hidden_attention` the class token's row of the implicit attention; `random` ignores the image.
    `mirrored` is what the published code of 2409.18962 computes: the gated backward output before
    it is put back in order, so that each token gets the score of its mirror image.
    draw: seed and number of the prune point, which decide what is `random`.
    """
    with torch.no_grad():
        if kind == "random":
            noise = _noise.__wrapped__ if torch.compiler.is_compiling() else _noise
            return noise(draw, tuple(mixed.y.shape[:2]), mixed.y.device)
        return _SCORES[kind](mixed, cls)
