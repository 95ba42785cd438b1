"""What a pruned denoiser learns from: images that the dense one made, and its answers there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .calibration import noised_at, target_at
from .pipelines import denoiser_of
from .sampling import Prompt, Replay
from .teacher import Teacher

_HELD = 64  # batches whose encoded prompts wait in memory


@dataclass(frozen=True, slots=True)
class Lesson:
    """Arguments of one denoiser call; the dense answer; what training would have wanted.

    prompted: rows that were told the prompt, which `wanted` is about.
    """

    arguments: Mapping[str, Any]
    answer: Tensor
    wanted: Tensor | None
    prompted: slice

    def losses(self, denoiser: nn.Module) -> tuple[Tensor, Tensor]:
        """Of another denoiser: distance to the dense answer, and to what training wanted.

        Mean squares over that of the dense answer, so that one learning rate serves every model;
        guidance needs both halves of the rows, so distance counts both.
        """
        out: Tensor = denoiser(**self.arguments, return_dict=False)[0]
        scale = self.answer.float().square().mean()
        distance = (out - self.answer).float().square().mean() / scale
        if self.wanted is None:
            return distance, torch.zeros_like(distance)
        # Some denoisers predict a variance as well.
        told = out[self.prompted][:, : self.wanted.shape[1]]
        return distance, (told - self.wanted).float().square().mean() / scale


class Lessons:
    """The dense pipeline's images of the prompts, in batches, with any amount of noise on them.

    Every prompt has one image, made when it is first asked for and kept in `cache` if there is one.
    """

    def __init__(
        self,
        teacher: Any,
        prompts: Sequence[Prompt],
        *,
        batch: int,
        steps: int,
        seed: int,
        call: Mapping[str, Any],
        wanted: bool,
        cache: Path | None,
    ) -> None:
        self._pipe, self._prompts, self._batch = teacher, list(prompts), batch
        self._steps, self._seed, self._call, self._wanted = steps, seed, dict(call), wanted
        self._teacher = Teacher(denoiser_of(teacher)[1], cache)
        self._replays: dict[int, Replay] = {}
        self._last: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Number of batches; the last may be smaller."""
        return -(-len(self._prompts) // self._batch)

    @torch.no_grad()
    def at(self, index: int, level: float, generator: Generator) -> Lesson:
        """The lesson of a batch of prompts at a noise level, 0 (most) to 1, one of the sampler's.

        generator: of the noise, on the CPU.
        """
        replay = self._replay(index)
        if index not in self._last:
            self._last[index] = self._teacher.last(replay).cpu()
        last, scheduler = self._last[index].to(replay.latent.device), replay.scheduler
        guided = replay.guidance is not None
        doubled = replay.adapter.doubled and guided
        clean = last[: len(last) // 2] if doubled else last
        t = scheduler.timesteps[min(int(level * replay.steps), replay.steps - 1)]
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        noised = noised_at(scheduler, clean, noise, t)
        arguments = replay.inputs(torch.cat([noised, noised]) if doubled else noised, t)
        answer: Tensor = replay.denoiser(**arguments, return_dict=False)[0]
        count = len(clean)
        first = count if guided and not doubled else 0  # which half of guidance knows the prompt
        return Lesson(
            arguments,
            answer,
            target_at(scheduler, clean, noise, t) if self._wanted else None,
            slice(first, first + count),
        )

    def _replay(self, index: int) -> Replay:
        if index not in self._replays:
            if len(self._replays) >= _HELD:
                del self._replays[next(iter(self._replays))]
            first = index * self._batch
            self._replays[index] = Replay.of(
                self._pipe,
                self._prompts[first : first + self._batch],
                steps=self._steps,
                seed=self._seed + first,
                call=self._call,
            )
        return self._replays[index]
