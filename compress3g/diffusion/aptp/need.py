"""Which prompt needs how large a network: by what each code's network gets wrong of it (ours)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from ...core import gated
from .codes import Space
from .corpus import Corpus
from .transport import transport

_ROWS = 32  # prompts at a time
_DRAWS = 4  # noise levels of each prompt
# A choice, and not a plan: what it decides is which prompts gain most from what large codes keep.
_SHARP, _ITERATIONS = 0.01, 2000
_RIDGES = tuple(10.0**k for k in range(-4, 3))  # times the number of prompts


@torch.no_grad()
def errors_of(
    corpus: Corpus, space: Space, gates: Mapping[str, Float[Tensor, "N u"]], generator: Generator
) -> Float[Tensor, "n N"]:
    """Mean squared distance to the dense answer for each prompt, through each code's gates.

    All codes, and the dense network, see the same noised latents, all prompts the same times.
    """
    count = len(next(iter(gates.values())))
    errors = torch.zeros(len(corpus), count)
    steps = len(corpus.scheduler.timesteps)
    parts = [
        (rows, (2 * i + 1) * steps // (2 * _DRAWS))
        for i in range(_DRAWS)
        for rows in torch.arange(len(corpus)).split(_ROWS)
    ]
    for rows, step in parts:
        sample = corpus.draw(rows, generator, step=step)
        dense = corpus.denoiser(**sample.arguments, return_dict=False)[0]
        for j in range(count):
            with gated(corpus.denoiser, space.units, {n: g[j] for n, g in gates.items()}):
                ours = corpus.denoiser(**sample.arguments, return_dict=False)[0]
            each = (ours - dense).float().square().flatten(1).mean(1).cpu()
            errors[:, j].index_add_(0, rows, each / _DRAWS)
    return errors


def by_need(
    errors: Float[Tensor, "n N"], z: Float[Tensor, "n d"], *, evenly: bool = True
) -> Int[Tensor, "n"]:
    """The code of each prompt: all codes used alike, with the least error altogether.

        min over Q  sum_ij Q_ij error_ij,   rows of Q sum to 1/n, columns to 1/N

    after a ridge regression of errors on embeddings: most of one error is its noise, and what
    embeddings do not tell no router can go by. What a prompt gains from a larger network decides,
    not how large its error is. Not evenly: the code of least error, the largest for nearly all.
    """
    weight, intercept = fitted(z, errors)
    errors = z @ weight.T + intercept
    if not evenly:
        return errors.argmin(1)
    scale = (errors.amax(1) - errors.amin(1)).mean().clamp(min=1e-12)
    plan, _ = transport(-errors / scale, epsilon=_SHARP, iterations=_ITERATIONS)
    return plan.argmax(1)


def leading(z: Float[Tensor, "n d"], count: int | None) -> Float[Tensor, "n k"]:
    """Embeddings along their `count` principal directions, or as they are.

    Errors grow with all that there is in an image, so that a caption of one white digit seems to
    need as much as one of two red ones. Few directions tell kinds of prompts apart, and no more.
    """
    if count is None or count >= min(z.shape):
        return z
    left, values, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    along: Tensor = left[:, :count] * values[:count]
    return along


def fitted(
    z: Float[Tensor, "n d"], wanted: Float[Tensor, "n U"]
) -> tuple[Float[Tensor, "U d"], Float[Tensor, "U"]]:
    """W and b of the ridge regression W z + b ~ wanted, by its error on prompts left out.

    Leaving one out is in closed form: a residual over 1 - h, h the diagonal of the hat matrix.
    """
    z, wanted = z.double(), wanted.double()
    mean, about = z.mean(0), wanted.mean(0)
    left, values, right = torch.linalg.svd(z - mean, full_matrices=False)
    inside = left.T @ (wanted - about)
    best, weight = float("inf"), torch.zeros(wanted.shape[1], z.shape[1], dtype=z.dtype)
    for ridge in _RIDGES:
        shrunk = values.square() / (values.square() + ridge * len(z))
        fit = left @ (shrunk[:, None] * inside)
        hat = (left.square() @ shrunk + 1 / len(z)).clamp(max=1 - 1e-6)
        error = float(((wanted - about - fit) / (1 - hat)[:, None]).square().mean())
        if error < best:
            best = error
            weight = (right.T @ ((shrunk / values.clamp(min=1e-12))[:, None] * inside)).T
    return weight.float(), (about - weight @ mean).float()
