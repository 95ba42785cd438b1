"""How like the dense pipeline's images another pipeline's are, and how good both are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .metrics import psnr, relative_error, ssim
from .pipelines import generate

_BATCH = 16
Score = Callable[[Tensor, list[str]], Any]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Last latents (n, ...) of a pipeline and, if asked for, images (n, c, h, w) in [0, 1]."""

    prompts: list[str]
    latents: Tensor
    images: Tensor | None


def pictures(
    pipe: Any,
    prompts: Sequence[str],
    *,
    images: bool,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
) -> Pictures:
    """What the pipeline makes of the prompts, each from a noise of its own; on the CPU."""

    def all_of(output: str) -> Tensor:
        parts = [
            generate(
                pipe, prompts[i : i + _BATCH], seed=seed + i, steps=steps, guidance=guidance,
                output=output,
            )
            for i in range(0, len(prompts), _BATCH)
        ]  # fmt: skip
        return torch.cat(parts).float().cpu()

    return Pictures(list(prompts), all_of("latent"), all_of("pt") if images else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """latent_error: mean squared error over the dense latents' mean square; scores: dense, other.

    Without images only the latents are compared.
    """

    images: int
    latent_error: float
    ssim: float | None = None
    psnr: float | None = None
    scores: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """What was measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        rows = [f"latent error  {self.latent_error:.4f} of the dense latents' mean square"]
        if self.ssim is not None and self.psnr is not None:
            rows += [f"SSIM          {self.ssim:.4f}", f"PSNR          {self.psnr:.2f} dB"]
        if self.scores is not None:
            rows.append(f"score         {self.scores[1]:.4f}, dense {self.scores[0]:.4f}")
        return "\n".join(rows) + f", over {self.images} images"


def likeness(dense: Pictures, other: Pictures, score: Score | None = None) -> Likeness:
    """Distances between pictures of the same prompts and seeds.

    score: (images, prompts) -> a number for each image, such as 1 where it is right.
    Raises ConfigError when it gives anything else.
    """
    found = Likeness(
        images=len(other.prompts), latent_error=relative_error(other.latents, dense.latents)
    )
    if dense.images is None or other.images is None:
        return found
    return Likeness(
        images=found.images,
        latent_error=found.latent_error,
        ssim=float(ssim(dense.images, other.images).mean()),
        psnr=float(psnr(other.images, dense.images).mean()),
        scores=None if score is None else (_mean(score, dense), _mean(score, other)),
    )


def _mean(score: Score, made: Pictures) -> float:
    try:
        found = torch.as_tensor(score(made.images, made.prompts)).float()  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the score is no list of numbers: {error}") from None
    if found.shape != (len(made.prompts),):
        raise ConfigError(
            f"the score has shape {tuple(found.shape)} for {len(made.prompts)} images: give one "
            "number for each"
        )
    return float(found.mean())
