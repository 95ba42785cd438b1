"""Experts learn, each from the prompts that come to it, to answer as the dense network does."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ...core import gated
from ...errors import ConfigError
from ..finetune import FinetuneConfig, finetune
from ..pipelines import denoiser_of
from ..pruned_models import is_pruned
from ..sampling import Replay
from .codes import as_gates
from .encoder import PIPELINE, embedding_in
from .experts import expert_of
from .pipeline import Answer, AptpPipeline, instead
from .router import Router

_log = logging.getLogger(__name__)


def finetune_experts(
    owner: AptpPipeline,
    prompts: Sequence[str],
    config: FinetuneConfig | None = None,
    *,
    common: float = 0.0,
    whole_batches: bool = False,
    larger: bool = False,
    teacher: Any = None,
    checkpoints: Path | None = None,
    cache: Path | None = None,
) -> AptpPipeline:
    """A routed pipeline whose experts have weights of their own, trained (2406.12042, section 3.5).

    Codes and router stay. First, for the share `common` of the updates, all experts learn together
    as parts of one network (ours). Then each is trained on the prompts that the router sends to it,
    and gets its share of every batch, or with `whole_batches` as much as a network alone would, as
    in the paper, which is N times the work; one that gets none stays as it is. With `larger` an
    expert learns from the prompts of larger experts too (ours, see `lessons_of`).

    teacher: the dense pipeline (default: the owner's own, which must then hold the dense denoiser);
    checkpoints: a folder to go on from; cache: a folder of dense images. Raises ConfigError without
    a dense denoiser, and for a common part where the router reads text with an encoder of its own.
    """
    config = config or FinetuneConfig()
    teacher = owner.pipe if teacher is None else teacher
    attribute, dense = denoiser_of(teacher)
    if is_pruned(dense):
        raise ConfigError("there is no dense denoiser to learn from: give the dense pipeline")
    if not 0 <= common <= 1:
        raise ConfigError(f"--common {common:g}: give a share of the updates, 0 to 1")
    first = round(common * config.updates)
    started: nn.Module | None = None
    if first:
        started = learn_together(
            owner, prompts, dataclasses.replace(config, updates=first), teacher=teacher,
            checkpoint=checkpoints / "common.safetensors" if checkpoints else None, cache=cache,
        )  # fmt: skip
    rest = config.updates - first
    chosen = owner.route(prompts).experts
    trained: dict[int, nn.Module] = {}
    for index, keep in enumerate(owner.router.keep):
        expert = owner.expert(index)
        if started is not None:
            expert = expert_of(started, owner.router.space, keep, index=index)
        # What an expert shares with the dense network, or with the others, must not learn.
        expert = copy.deepcopy(expert)
        rows = lessons_of(owner.router, chosen, index, larger=larger).nonzero()[:, 0]
        mine = [prompts[i] for i in rows.tolist()]
        if mine and rest:
            student = copy.copy(teacher)
            student.register_modules(**{attribute: expert})
            part = dataclasses.replace(config, updates=rest)
            if not whole_batches:
                part = its_part(part, len(mine) / len(prompts))
            finetune(
                student, teacher, mine, part,
                checkpoint=checkpoints / f"{index}.safetensors" if checkpoints else None,
                cache=cache,
            )  # fmt: skip
        elif not mine:
            _log.warning("expert %d gets no prompt of these, and stays as it is", index)
        trained[index] = expert
    return AptpPipeline(owner.pipe, owner.router, mode="finetuned", build=trained.__getitem__)


def lessons_of(
    router: Router, chosen: Int[Tensor, "n"], index: int, *, larger: bool = False
) -> Bool[Tensor, "n"]:
    """Which prompts an expert learns from: those that come to it; none where none does.

    With `larger`, those of larger experts besides (ours): an image of much teaches what one of
    little needs, which alone has less to teach, and not the other way round.
    """
    mine = chosen == index
    if larger and mine.any():
        mine = mine | (router.shares[chosen] > router.shares[index])
    return mine


def learn_together(
    owner: AptpPipeline,
    prompts: Sequence[str],
    config: FinetuneConfig,
    *,
    teacher: Any,
    checkpoint: Path | None = None,
    cache: Path | None = None,
) -> nn.Module:
    """A whole denoiser whose parts, as the experts keep them, have learnt side by side (ours).

    Every row of a batch goes through the gates of its prompt's expert, so that experts learn from
    each other's prompts what they have in common. Raises ConfigError where the router reads text.
    """
    router = owner.router
    if router.encoder != PIPELINE:
        raise ConfigError("experts learn together only where the router reads the pipeline's text")
    attribute, dense = denoiser_of(teacher)
    whole = copy.deepcopy(dense)
    student = copy.copy(teacher)
    student.register_modules(**{attribute: whole})
    call = {} if config.guidance is None else {"guidance_scale": config.guidance}
    replay = Replay.of(teacher, prompts[:1], steps=config.steps, call=call)
    doubled = replay.adapter.doubled and replay.guidance is not None
    with as_parts(whole, router, doubled=doubled):
        finetune(student, teacher, prompts, config, checkpoint=checkpoint, cache=cache)
    return whole


@contextmanager
def as_parts(whole: nn.Module, router: Router, *, doubled: bool) -> Iterator[None]:
    """A whole denoiser answers every row as the expert would to which the row's prompt goes.

    doubled: the first half of a call's rows are the same prompts untold, for guidance.
    """
    device = next(whole.parameters()).device
    each = [as_gates(keep, router.space) for keep in router.keep]
    gates = {n: torch.stack([g[n] for g in each]).to(device) for n in each[0]}

    def masked(own: Answer, arguments: dict[str, Any]) -> Any:
        told = embedding_in(arguments)
        chosen = router.route(told[len(told) // 2 :] if doubled else told)
        rows = (chosen.repeat(2) if doubled else chosen).to(device)
        with gated(whole, router.space.units, {n: g[rows] for n, g in gates.items()}):
            return own(**arguments)

    with instead(whole, masked):
        yield


def its_part(config: FinetuneConfig, share: float) -> FinetuneConfig:
    """What an expert trains on that gets this share of the prompts.

    As many updates as one network would have, each of its share of the batch: together the experts
    see as many prompts as one network would, and none stops after a fraction of the updates (ours).
    Where less than a prompt is left of a batch, the updates become fewer.
    """
    batch = max(1, round(config.batch * share))
    updates = max(1, round(config.updates * config.batch * share / batch))
    return dataclasses.replace(config, batch=batch, updates=updates)
