"""What networks of benchmarks/aptp.py learn from: answers of the dense one, worked out once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress3g.diffusion.calibration import noised_at
from compress3g.diffusion.sampling import Replay


@dataclass(frozen=True, slots=True)
class Bank:
    """Noised images of the dense network, and its answers with and without the caption.

    Rows: (time, caption), the last one fastest; text: of each caption, and of none at the end.
    """

    noised: Tensor
    times: Tensor
    without: Tensor
    told: Tensor
    text: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, pipe: Any, captions: Sequence[str], seed: int, steps: int, guidance: float) -> Bank:
        """At every time of a sampler of so many steps, each with one noise."""
        call = {"guidance_scale": guidance}
        replay = Replay.of(pipe, captions, steps=steps, seed=seed, call=call)
        last, scheduler, count = replay.run(), replay.scheduler, len(captions)
        noise = torch.Generator().manual_seed(seed)
        kept: list[list[Tensor]] = [[], [], [], []]
        for t in scheduler.timesteps:
            noised = noised_at(scheduler, last, torch.randn(last.shape, generator=noise), t)
            answer = replay.denoiser(**replay.inputs(noised, t), return_dict=False)[0]
            for place, value in zip(
                kept, (noised, t.float().expand(count), *answer.chunk(2)), strict=True
            ):
                place.append(value)
        text = replay.arguments["encoder_hidden_states"]
        return cls(*map(torch.cat, kept), torch.cat([text[count:], text[:1]]))

    def loss(self, network: nn.Module, captions: Tensor, generator: torch.Generator) -> Tensor:
        """Distance to the dense answers over their mean square, each row at a time of its own."""
        count = len(self.text) - 1
        step = torch.randint(len(self.times) // count, captions.shape, generator=generator)
        rows = step * count + captions
        x, times, told = self.noised[rows], self.times[rows], self.text[captions]
        wanted = torch.cat([self.without[rows], self.told[rows]])
        out = network(
            torch.cat([x, x]), torch.cat([times, times]), return_dict=False,
            encoder_hidden_states=torch.cat([self.text[-1:].expand_as(told), told]),
        )[0]  # fmt: skip
        return (out - wanted).square().mean() / wanted.square().mean()


@dataclass(frozen=True, slots=True)
class Course:
    """How a network learns: Adam, its rate up over a twentieth of the updates, down as a cosine."""

    updates: int
    batch: int
    rate: float
    seed: int

    def take(self, network: nn.Module, bank: Bank, captions: Tensor) -> None:
        """Change the network's weights so that it answers these captions (numbers) as the bank."""
        network.requires_grad_(True)
        adam = torch.optim.Adam(network.parameters(), lr=self.rate)
        generator = torch.Generator().manual_seed(self.seed)
        for i in range(self.updates):
            drawn = captions[torch.randint(len(captions), (self.batch,), generator=generator)]
            adam.zero_grad()
            bank.loss(network, drawn, generator).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            share = (i + 1) / self.updates
            adam.param_groups[0]["lr"] = (
                self.rate * min(1.0, 20 * share) * 0.5 * (1 + math.cos(math.pi * share))
            )
            adam.step()
        network.requires_grad_(False)
