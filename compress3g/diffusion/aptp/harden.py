"""From soft codes to experts that are really cut, at what they really cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Keep
from .codes import as_gates
from .router import Router
from .transport import transport

_ROUNDS = 40  # of bisection


def hardened(router: Router, embeddings: Float[Tensor, "n d"]) -> Router:
    """The router with its experts decided, priced, and used as its training prompts need them.

    Soft gates count partly, hard ones not: one number added to the logits of all codes makes the
    experts' mean cost over these prompts the target again (ours). Prices are those of a transport
    over all prompts, so that experts are used at inference as they were in training (ours).
    """
    similarities = router.similarities(embeddings)
    if router.config.transport and len(router.logits) > 1:
        _, prices = transport(similarities, epsilon=router.config.sinkhorn, iterations=200)
        router = replace(router, prices=prices)
    chosen = (similarities + router.prices).argmax(1)
    usage = torch.bincount(chosen, minlength=len(router.logits)).float() / len(chosen)
    low, high = -20.0, 20.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        mean = float((usage * _shares(router, _decided(router, middle))).sum())
        low, high = (middle, high) if mean < router.config.target else (low, middle)
    keep = _decided(router, low)
    router = replace(router, keep=tuple(keep), shares=_shares(router, keep), usage=usage)
    # What one more bundle would overshoot is made up for by which prompt goes where.
    return router.rebalance(embeddings)


def _decided(router: Router, shift: float) -> list[Keep]:
    return [router.code.hard(logits, shift) for logits in router.logits]


def _shares(router: Router, keep: Sequence[Keep]) -> Float[Tensor, "N"]:
    return torch.stack([router.space.share(as_gates(k, router.space)) for k in keep])
