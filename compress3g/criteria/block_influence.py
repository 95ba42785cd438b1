"""How much a whole layer changes what passes through it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def block_influence(states: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "layers"]:
    """1 - E[cos(x_l, x_(l+1))] of every layer (ShortGPT, 2403.03853); low: little is lost with it.

    states: the residual stream before every layer and after the last, one row per token.

    >>> x = torch.tensor([[1.0, 0.0]])
    >>> block_influence([x, x, -x])
    tensor([0., 2.])
    """
    cosines = [
        F.cosine_similarity(a.double(), b.double(), dim=-1).mean() for a, b in pairwise(states)
    ]
    return (1 - torch.stack(cosines)).float()
