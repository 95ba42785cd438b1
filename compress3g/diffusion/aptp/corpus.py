"""Prompts with latents and whatever the denoiser is told about them, ready to be drawn from."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from ...engine.checkpoint import load_tensors, save_tensors
from ...engine.progress import Progress
from ...errors import ConfigError, FormatError
from ..adapters import Adapter, adapter_of
from ..calibration import noised_at, target_at
from ..pipelines import denoiser_of, generate
from ..sampling import Replay
from ..teacher import fingerprint
from .encoder import embedding_in

_CHUNK = 16  # prompts that go through the pipeline at a time


@dataclass(frozen=True, slots=True)
class Sample:
    """Noised latents with all that the denoiser is given beside them, and what it should answer."""

    arguments: dict[str, Any]
    target: Tensor
    times: Float[Tensor, "B"]


@dataclass(slots=True)
class Corpus:
    """Training data: a latent, an embedding and the denoiser's arguments for each prompt.

    Arguments have one row per prompt, on the CPU; those of no prompt at all are kept beside them.
    """

    prompts: list[str]
    latents: Float[Tensor, "n ..."]
    embeddings: Float[Tensor, "n d"]
    adapter: Adapter
    scheduler: Any
    denoiser: Any
    _told: dict[str, Any] = field(repr=False)
    _untold: dict[str, Any] = field(repr=False)
    _by_row: set[str] = field(repr=False)

    @classmethod
    def of(
        cls,
        pipe: Any,
        prompts: Sequence[str],
        *,
        latents: Tensor | None = None,
        steps: int = 20,
        guidance: float | None = None,
        seed: int = 0,
        cache: Path | None = None,
    ) -> Corpus:
        """What the pipeline makes of the prompts, or `latents` that the caller has of real images.

        steps: of the inference that makes latents and whose times are drawn from; cache: a file
        for the latents that are made. Raises ConfigError for a pipeline without adapter and for
        latents of another number, FormatError for the cache of another model or of other prompts.
        """
        if not prompts:
            raise ConfigError("there is no prompt: give at least one")
        if latents is None:
            latents = _made(pipe, prompts, steps, guidance, seed, cache)
        if len(latents) != len(prompts):
            raise ConfigError(f"{len(latents)} latents for {len(prompts)} prompts: give one each")
        told = [
            _arguments(pipe, prompts[i : i + _CHUNK], steps) for i in range(0, len(prompts), _CHUNK)
        ]
        by_row = {n for n, v in told[0][0].items() if has_rows(n, v, told[0][1])}
        whole = {
            name: _stacked([a[name] for a, _ in told]) if name in by_row else told[0][0][name]
            for name in told[0][0]
        }
        untold = _arguments(pipe, [""], steps)[0]
        scheduler = copy.deepcopy(pipe.scheduler)  # the pipeline's changes with every call
        scheduler.set_timesteps(steps)
        return cls(
            list(prompts), latents.cpu(), embedding_in(whole).cpu(), adapter_of(pipe),
            scheduler, denoiser_of(pipe)[1], whole, untold, by_row,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(
        self,
        rows: Int[Tensor, "B"],
        generator: Generator,
        *,
        drop: float = 0.0,
        step: int | None = None,
    ) -> Sample:
        """Noised latents of these prompts, each at a random time of the inference's.

        drop: share of the rows that are told nothing, as guidance's other half is; step: of the
        inference, instead of a random one.
        """
        scheduler, latents = self.scheduler, self.latents[rows]
        steps = torch.randint(len(scheduler.timesteps), (len(rows),), generator=generator)
        if step is not None:
            steps = torch.full_like(steps, step)
        times = scheduler.timesteps[steps]
        noise = torch.randn(latents.shape, generator=generator)
        untold = torch.rand(len(rows), generator=generator) < drop
        noised = torch.cat(
            [self._noised(latents[i : i + 1], times[i], noise[i : i + 1]) for i in range(len(rows))]
        )
        scheduler._step_index = None
        arguments = {
            name: self._rows(name, value, rows, untold) for name, value in self._told.items()
        }
        like = next(self.denoiser.parameters())
        x = noised.to(like)
        each = [self.adapter.timestep(t, 1, self.denoiser, x[:1]).reshape(1) for t in times]
        arguments = tree_map(lambda v: v.to(like.device) if isinstance(v, Tensor) else v, arguments)
        arguments |= {self.adapter.latent: x, "timestep": torch.cat(each).to(like.device)}
        target = target_at(scheduler, latents, noise, times).to(x)
        return Sample(arguments, target, times.float().to(x.device))

    def _noised(self, latent: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        scheduler = self.scheduler
        noised = noised_at(scheduler, latent, noise, t)
        if self.adapter.scaled and hasattr(scheduler, "scale_model_input"):
            scaled: Tensor = scheduler.scale_model_input(noised, t)
            return scaled
        return noised

    def _rows(self, name: str, value: Any, rows: Tensor, untold: Tensor) -> Any:
        if name not in self._by_row:
            return value

        def chosen(told: Any, nothing: Any) -> Any:
            if isinstance(told, dict):
                return {k: chosen(told[k], nothing[k]) for k in told}
            if not isinstance(told, Tensor) or not told.dim():
                return told
            mask = untold.view(-1, *[1] * (told.dim() - 1))
            return torch.where(mask, nothing.to(told), told[rows])

        return chosen(value, self._untold[name])


def _made(
    pipe: Any,
    prompts: Sequence[str],
    steps: int,
    guidance: float | None,
    seed: int,
    file: Path | None,
) -> Tensor:
    asked = _asked(pipe, prompts, steps, guidance, seed) if file is not None else ""
    if file is not None and file.exists():
        tensors, about = load_tensors(file)
        if about.get("asked") != asked:
            raise FormatError(
                f"{file} holds latents of another model, other prompts or other options: remove it"
            )
        return tensors["latents"]
    made = []
    with Progress("latents") as progress:
        for i in progress.over(range(0, len(prompts), _CHUNK), -(-len(prompts) // _CHUNK)):
            part = prompts[i : i + _CHUNK]
            options: dict[str, Any] = {"seed": seed + i, "steps": steps, "guidance": guidance}
            made.append(generate(pipe, part, **options, output="latent").float().cpu())
    latents = torch.cat(made)
    if file is not None:
        save_tensors(file, {"latents": latents}, {"asked": asked})
    return latents


def _asked(pipe: Any, prompts: Sequence[str], steps: int, guidance: float | None, seed: int) -> str:
    """What decides the latents: denoiser, text encoders and scheduler, all that they are told."""
    parts = sorted(pipe.components.items())
    models = [fingerprint(m) for name, m in parts if isinstance(m, nn.Module) and name != "vae"]
    scheduler = [type(pipe.scheduler).__name__, dict(pipe.scheduler.config)]
    text = json.dumps([models, scheduler, list(prompts), steps, guidance, seed], default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _arguments(pipe: Any, prompts: Sequence[str], steps: int) -> tuple[dict[str, Any], int]:
    """What the denoiser is told beside latents and time, without guidance; and how many rows."""
    replay = Replay.of(pipe, prompts, steps=max(2, steps), call={"guidance_scale": 1.0})
    if replay.rows != len(prompts):
        raise ConfigError(
            f"{type(pipe).__name__} makes {replay.rows} rows of {len(prompts)} prompts without "
            "guidance: a router needs one row each"
        )
    told = {
        name: tree_map(lambda v: v.cpu() if isinstance(v, Tensor) else v, value)
        for name, value in replay.arguments.items()
        if name not in (replay.adapter.latent, "timestep")
    }
    return told, replay.rows


def has_rows(name: str, value: Any, rows: int) -> bool:
    """Whether an argument has one row per prompt; positions of tokens never have.

    Stable Diffusion XL's time_ids are sizes and crops, one row for each image.
    """
    if isinstance(value, dict):
        return any(has_rows(k, v, rows) for k, v in value.items())
    place = name.endswith(("_ids", "rotary_emb")) and name != "time_ids"
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows and not place


def _stacked(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {k: _stacked([p[k] for p in parts]) for k in parts[0]}
    if isinstance(parts[0], Tensor) and parts[0].dim():
        return torch.cat(list(parts))
    return parts[0]
