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
# Prices for a choice, and not for a plan: with training's entropy a plan that shares a prompt out
# among codes that are alike looks even, and the largest part of every prompt still goes to one.
_SHARPER, _ITERATIONS = 0.1, 1000


def hardened(router: Router, embeddings: Float[Tensor, "n d"]) -> Router:
    """The router with its experts decided, priced, and used as its training prompts need them.

    Soft gates count partly, hard ones not: one number added to the logits of all codes makes the
    experts' mean cost over these prompts the target again, or less by a unit's cost (ours). Prices
    are those of a transport over all prompts, so that experts are used alike at inference (ours).
    """
    router = priced(router, embeddings)
    low, high = -20.0, 20.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        mean = float((router.usage * shares_of(router, _decided(router, middle))).sum())
        low, high = (middle, high) if mean < router.config.target else (low, middle)
    keep = _decided(router, low)
    return replace(router, keep=tuple(keep), shares=shares_of(router, keep))


def priced(router: Router, embeddings: Float[Tensor, "n d"]) -> Router:
    """The router with the prices by which these prompts use all codes alike, and that use."""
    similarities = router.similarities(embeddings)
    if router.config.transport and len(router.logits) > 1:
        epsilon = _SHARPER * router.config.sinkhorn
        _, prices = transport(similarities, epsilon=epsilon, iterations=_ITERATIONS)
        router = replace(router, prices=prices)
    chosen = (similarities + router.prices).argmax(1)
    usage = torch.bincount(chosen, minlength=len(router.logits)).float() / len(chosen)
    return replace(router, usage=usage)


def _decided(router: Router, shift: float) -> list[Keep]:
    return [router.code.hard(logits, shift) for logits in router.logits]


def shares_of(router: Router, keep: Sequence[Keep]) -> Float[Tensor, "N"]:
    """Of the dense denoiser's multiply-adds, what each of these decisions costs."""
    return torch.stack([router.space.share(as_gates(k, router.space)) for k in keep])
