"""Codes cut again, each by what its own prompts need (ours).

A code that is learnt, or that starts as magnitude's network, says how much its prompts get, and
hardly which units: those with the largest weights, for all codes the same. Once prompts have their
codes, the units of code k are scored on the prompts P_k that come to it, by --recut,

    fisher   s_k(i) = mean over x in P_k of (dL_x / dg_i)^2,    taylor   mean of |dL / dg_i|,

with L the denoising loss and g the gates. What the code costs is filled with the units of highest
score, fisher's over their cost, as `cd.prune` fills it; codes of graded sizes are filled to what
`--grade` asks for. Which blocks stay is as it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from ...core import Gates, Keep
from ...criteria import CRITERIA, Criterion, gather, held, score
from ..prune import decide
from .codes import SoftCode, Space, as_gates
from .corpus import Corpus, Sample
from .harden import priced, shares_of
from .need import fitted
from .router import Router
from .start import graded_sizes

_FIRM = 3.0  # logit of a gate that is decided, as in `start`
_PROMPTS, _ROWS, _LEVELS = 64, 16, 4  # looked at of each code, at a time, noise levels of each
_ROUNDS = 4  # until what codes cost and how often they are used fit each other


def recut(
    router: Router, corpus: Corpus, embeddings: Float[Tensor, "n d"], generator: Generator
) -> Router:
    """The hardened router with other units in its experts, for the same prompts and mean cost.

    The predictor is fitted to the new codes in closed form, and prices are found again. A code
    that gets no prompt stays as it is. embeddings: of the corpus' prompts, for this router.
    """
    chosen = router.route(embeddings)
    scores = [
        scores_of(corpus, router, (chosen == k).nonzero()[:, 0], generator)
        for k in range(len(router.keep))
    ]
    config, sizes = router.config, router.shares
    if config.start == "graded":  # what was asked for, which codes of whole bundles come near to
        sizes = graded_sizes(router.space, config.target, config.experts, config.grade)
    wanted, z = router, router.standard(embeddings)
    for _ in range(_ROUNDS):
        keep = _filled(wanted, sizes, scores)
        logits = torch.stack([_logits(router.code, k) for k in keep])
        weight, intercept = fitted(z, logits[chosen])
        found = replace(
            router, weight=weight, intercept=intercept, logits=logits, keep=tuple(keep),
            shares=shares_of(router, keep),
        )  # fmt: skip
        found = priced(found, embeddings)
        if torch.equal(found.usage, wanted.usage):
            break
        wanted = found
    return found


def scores_of(
    corpus: Corpus, router: Router, rows: Int[Tensor, "n"], generator: Generator
) -> Gates:
    """One number per unit that is no block, higher stays, by `--recut`; of no rows nothing.

    All rows are told their prompts: one that is told nothing errs so much that its gradient,
    squared, outweighs many others, and it says nothing of these prompts.
    """
    if not len(rows):
        return {}
    criterion = CRITERIA[str(router.config.recut)]
    denoiser = corpus.denoiser
    units = [u for u in router.space.units if u.bypass is None]
    seen: list[Sample] = []
    if criterion.needs != "nothing":
        steps = len(corpus.scheduler.timesteps)
        seen = [
            corpus.draw(part, generator, step=step)
            for part in rows[:_PROMPTS].split(_ROWS)
            for step in sorted({(2 * i + 1) * steps // (2 * _LEVELS) for i in range(_LEVELS)})
        ]
    with held(denoiser):
        evidence = gather(denoiser, units, [criterion], seen, loss=_loss, generator=generator)
        found = score(criterion, evidence)[0]
    if criterion.per_cost:
        found = {u.name: found[u.name] / u.cost["flops"] for u in units}
    return found


def _loss(denoiser: nn.Module, sample: Sample) -> Tensor:
    told: dict[str, Any] = sample.arguments
    answer = denoiser(**told, return_dict=False)[0][:, : sample.target.shape[1]]
    error: Tensor = (answer - sample.target).float().square().mean()
    return error


def _filled(router: Router, sizes: Float[Tensor, "N"], scores: list[Gates]) -> list[Keep]:
    """What each code keeps, so that their mean cost over the prompts is the target, or less.

    Sizes all change by the same amount, and what one code leaves over goes to the next.
    """
    criterion = CRITERIA[str(router.config.recut)]
    more = router.config.target - float((router.usage * sizes).sum())
    keep, spare = list(router.keep), 0.0
    for k, theirs in enumerate(scores):
        usage = float(router.usage[k])
        if not theirs or not usage:
            continue
        asked = float(sizes[k]) + more + spare / usage
        keep[k] = fill(router.space, theirs, router.keep[k], asked, criterion)
        got = float(router.space.share(as_gates(keep[k], router.space)))
        spare = usage * (asked - got)
    return keep


def fill(space: Space, scores: Gates, keep: Keep, share: float, criterion: Criterion) -> Keep:
    """At most this share of the multiply-adds, in the blocks that `keep` has, best scores first.

    One unit of a group stays. criterion: whose scores they are; it says how they are compared.
    """
    closed = {u.name for u in space.units if u.bypass is not None and not len(keep[u.name])}
    # Of `decide`, units of an open block are as good as those outside.
    free = [
        replace(u, inside=None) for u in space.units if u.bypass is None and u.inside not in closed
    ]
    whole = {**keep, **{u.name: torch.arange(u.size) for u in free}}
    removed = (float(space.share(as_gates(whole, space))) - share) * space.total
    most = sum(u.cost["flops"] * (u.size - 1) for u in free)
    return {
        **keep,
        **decide(
            scores, free, min(max(removed, 0.0), most), space.total, cost="flops",
            scope=criterion.scope, normalize=criterion.normalize,
        ),
    }  # fmt: skip


def _logits(code: SoftCode, keep: Keep) -> Float[Tensor, "U"]:
    gates = as_gates(keep, code.space)
    return code.inverse(torch.cat([_FIRM * (2 * gates[u.name] - 1) for u in code.space.units]))
