"""Experts learn, each from the prompts that come to it, to answer as the dense network does."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import ConfigError
from ..finetune import FinetuneConfig, finetune
from ..pipelines import denoiser_of
from ..pruned_models import is_pruned
from .pipeline import AptpPipeline

_log = logging.getLogger(__name__)


def finetune_experts(
    owner: AptpPipeline,
    prompts: Sequence[str],
    config: FinetuneConfig | None = None,
    *,
    teacher: Any = None,
    checkpoints: Path | None = None,
    cache: Path | None = None,
) -> AptpPipeline:
    """A routed pipeline whose experts have weights of their own, trained (2406.12042, section 3.5).

    Codes and router stay. Each expert is trained on the prompts that the router sends to it, and
    gets its share of every batch; one that gets none stays as it is. teacher: the dense pipeline
    (default: the owner's own, which must then hold the dense denoiser); checkpoints: a folder to go
    on from; cache: a folder of dense images. Raises ConfigError without a dense denoiser.
    """
    config = config or FinetuneConfig()
    teacher = owner.pipe if teacher is None else teacher
    attribute, dense = denoiser_of(teacher)
    if is_pruned(dense):
        raise ConfigError("there is no dense denoiser to learn from: give the dense pipeline")
    chosen = owner.route(prompts).experts.tolist()
    trained: dict[int, nn.Module] = {}
    for index in range(len(owner.router.keep)):
        # What an expert shares with the dense network must not learn.
        expert = copy.deepcopy(owner.expert(index))
        mine = [p for p, i in zip(prompts, chosen, strict=True) if i == index]
        if mine:
            student = copy.copy(teacher)
            student.register_modules(**{attribute: expert})
            finetune(
                student, teacher, mine, its_part(config, len(mine) / len(prompts)),
                checkpoint=checkpoints / f"{index}.safetensors" if checkpoints else None,
                cache=cache,
            )  # fmt: skip
        else:
            _log.warning("expert %d gets no prompt of these, and stays as it is", index)
        trained[index] = expert
    return AptpPipeline(owner.pipe, owner.router, mode="finetuned", build=trained.__getitem__)


def its_part(config: FinetuneConfig, share: float) -> FinetuneConfig:
    """What an expert trains on that gets this share of the prompts.

    As many updates as one network would have, each of its share of the batch: together the experts
    see as many prompts as one network would, and none stops after a fraction of the updates (ours).
    Where less than a prompt is left of a batch, the updates become fewer.
    """
    batch = max(1, round(config.batch * share))
    updates = max(1, round(config.updates * config.batch * share / batch))
    return dataclasses.replace(config, batch=batch, updates=updates)
