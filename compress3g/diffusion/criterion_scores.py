"""Scores of a denoiser's units by a criterion, of weights or of what the pipeline draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..core import Gates, Units
from ..criteria import CRITERIA, gather, held, score
from .calibration import lessons, loss
from .pipelines import denoiser_of


def criterion_scores(
    pipe: Any,
    prompts: Sequence[str],
    method: str,
    *,
    units: Sequence[Units],
    steps: int,
    guidance: float | None = None,
    batch: int = 8,
    seed: int = 0,
) -> Gates:
    """One number per unit and group, higher stays; the denoiser is left as it was.

    Criteria that look at data see the pipeline's own latents of the prompts, noised, under the loss
    the denoiser was trained with (2305.10924). steps, guidance, batch: of drawing them.
    """
    criterion, denoiser = CRITERIA[method], denoiser_of(pipe)[1]
    seen: Sequence[Any] = ()
    if criterion.needs != "nothing":
        drawn: dict[str, Any] = {"batch": batch, "steps": steps, "guidance": guidance}
        seen = lessons(pipe, prompts, seed=seed, **drawn)
    generator = torch.Generator().manual_seed(seed)
    with held(denoiser):
        evidence = gather(denoiser, units, [criterion], seen, loss=loss, generator=generator)
        return score(criterion, evidence)[0]
