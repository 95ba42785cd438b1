"""Selection per input instead of per model: which tokens of each row stay, in their order."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..errors import BudgetError, ScoreError


def keep_tokens(
    score: Float[Tensor, "b n"],
    keep: float | int,
    *,
    always: Int[Tensor, "m"] | None = None,
    valid: Bool[Tensor, "b n"] | None = None,
) -> Int[Tensor, "b k"]:
    """Ascending indices of the k best tokens of each row; scans depend on the order.

    keep: how many (int), or the share of n, rounded, at least one (float). always: positions that
    stay whatever their score. valid: False for padding, which is chosen only when nothing else is
    left. Ties go to the lower index. Raises ScoreError on NaN and BudgetError when k is not within
    the number of `always` and n.

    >>> keep_tokens(torch.tensor([[0.1, 0.9, 0.5, 0.7]]), 2, always=torch.tensor([0]))
    tensor([[0, 1]])
    """
    n = score.shape[-1]
    count = keep if isinstance(keep, int) else max(1, round(keep * n))
    least = 0 if always is None else len(always.unique())
    if not max(least, 1) <= count <= n:
        raise BudgetError(f"cannot keep {count} of {n} tokens, {least} of them always")
    if _may_look(score) and bool(score.isnan().any()):
        raise ScoreError(f"token scores of shape {tuple(score.shape)} hold NaN")
    rank = score.detach().double()
    if valid is not None:
        rank = rank.masked_fill(~valid, -torch.inf)
    if always is not None:
        rank = rank.index_fill(-1, always, torch.inf)
    order = rank.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(-1).values


def _may_look(score: Tensor) -> bool:
    """Whether a value may be asked for: not while a graph is exported or captured."""
    if torch.compiler.is_compiling():
        return False
    return not (score.is_cuda and torch.cuda.is_current_stream_capturing())


def gather_tokens(x: Shaped[Tensor, "b n d"], index: Int[Tensor, "b k"]) -> Shaped[Tensor, "b k d"]:
    """The tokens of `index`, row by row."""
    # Whole tokens are copied at once, which `gather` along the second axis does not do.
    first = torch.arange(len(x), device=index.device)[:, None] * x.shape[1]
    picked = x.flatten(0, 1).index_select(0, (first + index).flatten())
    return picked.view(*index.shape, x.shape[-1])


def scatter_tokens(
    x: Shaped[Tensor, "b k d"], index: Int[Tensor, "b k"], n: int, fill: Tensor | float = 0
) -> Shaped[Tensor, "b n d"]:
    """n tokens with those of x at `index` and `fill` (broadcastable to b n d) elsewhere."""
    whole = x.new_zeros(len(x), n, x.shape[-1]) + torch.as_tensor(fill, dtype=x.dtype).to(x.device)
    return whole.scatter(1, index[..., None].expand(-1, -1, x.shape[-1]), x)
