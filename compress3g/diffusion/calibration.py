"""A loss that prompts define: the denoiser's training loss, on images that it makes itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .pipelines import Call, generate, recording


@dataclass(frozen=True, slots=True)
class Lesson:
    """A call of the denoiser with noised latents, and what it should answer."""

    call: Call
    target: Tensor


def loss(denoiser: nn.Module, lesson: Lesson) -> Tensor:
    """Mean squared error of the denoiser's answer; a variance that it predicts too is left out."""
    found = lesson.call.run(denoiser)
    return (found[:, : lesson.target.shape[1]] - lesson.target).float().square().mean()


def lessons(
    pipe: Any,
    prompts: Sequence[str],
    *,
    levels: int = 4,
    batch: int = 8,
    steps: int = 20,
    guidance: float | None = None,
    seed: int = 0,
) -> list[Lesson]:
    """Lessons from latents that the pipeline makes of the prompts, each at `levels` noise levels.

    As Diff-Pruning (2305.10924) uses a training set, with the model's own images in its place.
    Raises ConfigError for a scheduler without a rule for adding noise, or a pipeline whose calls
    are not of one row per prompt without guidance.
    """
    found: list[Lesson] = []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        latents = generate(
            pipe, part, seed=seed + first, steps=steps, guidance=guidance, output="latent"
        )
        scheduler = copy.deepcopy(pipe.scheduler)  # with the steps of that run
        with recording(pipe) as calls:
            # Guidance of one means none: a call has one row per prompt. Of two steps the first is
            # not at time 0, which would hide the unit that times are given in.
            generate(pipe, part, seed=seed, steps=2, guidance=1.0, output="latent")
        call, start = calls[0], float(pipe.scheduler.timesteps[0])
        generator = torch.Generator().manual_seed(seed + first)
        count = len(scheduler.timesteps)
        for level in range(min(levels, count)):
            t = scheduler.timesteps[(2 * level + 1) * count // (2 * levels)]
            found.append(_lesson(scheduler, call, latents, t, start, generator))
    return found


def _lesson(
    scheduler: Any, call: Call, latents: Tensor, t: Tensor, start: float, generator: torch.Generator
) -> Lesson:
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noised = noised_at(scheduler, latents, noise, t)
    if hasattr(scheduler, "scale_model_input"):
        noised = scheduler.scale_model_input(noised, t)
    return Lesson(_with(call, noised, t, start), target_at(scheduler, latents, noise, t))


def noised_at(scheduler: Any, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a run of the scheduler that ends at `latents` might have had at timestep t.

    Raises ConfigError for a scheduler without a rule for adding noise.
    """
    each = t.expand(len(latents))
    scheduler._step_index = scheduler._begin_index = None  # of a run that has ended
    if hasattr(scheduler, "scale_noise"):
        noised: Tensor = scheduler.scale_noise(latents, each, noise)
    elif hasattr(scheduler, "add_noise"):
        noised = scheduler.add_noise(latents, noise, each)
    else:
        raise ConfigError(
            f"{type(scheduler).__name__} cannot add noise: give the pipeline another scheduler"
        )
    return noised


def target_at(scheduler: Any, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a denoiser of this scheduler is trained to answer to `noised_at`.

    Raises ConfigError for a prediction type whose target is not known.
    """
    each = t.expand(len(latents))
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    if kind == "flow_prediction":
        return noise - latents
    if kind == "v_prediction" and hasattr(scheduler, "get_velocity"):
        velocity: Tensor = scheduler.get_velocity(latents, noise, each)
        return velocity
    raise ConfigError(f"{type(scheduler).__name__} predicts {kind}, whose target is not known")


def _with(call: Call, sample: Tensor, t: Tensor, start: float) -> Call:
    """The call with other latents at another time, in the unit in which the pipeline gives it."""
    args, kwargs = list(call.args), dict(call.kwargs)
    place: Any = "hidden_states" if "hidden_states" in kwargs else "sample"
    old = args[0] if args else kwargs[place]
    if old.shape != sample.shape:
        raise ConfigError(
            f"the denoiser is given {tuple(old.shape)} for latents {tuple(sample.shape)}: "
            "a criterion that looks at data needs one row per prompt"
        )
    if args:
        args[0] = sample.to(old)
    else:
        kwargs[place] = sample.to(old)
    before = args[1] if len(args) > 1 else kwargs["timestep"]
    time = torch.as_tensor(before).float()
    time = time * (float(t) / start)
    if len(args) > 1:
        args[1] = time
    else:
        kwargs["timestep"] = time
    return replace(call, args=tuple(args), kwargs=kwargs)
