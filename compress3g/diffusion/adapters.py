"""What each family of pipelines does around its denoiser in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .pipelines import denoiser_of


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a pipeline does around its denoiser in one step.

    latent: name of the denoiser's argument that takes the latents; timestep: (t, rows, denoiser,
    latent) -> its argument `timestep`; output: (what the denoiser returned, guidance or None,
    denoiser, options of the pipeline's call) -> what the scheduler is given; scaled: the scheduler
    scales the latents first; doubled: the pipeline's latents are both halves of guidance already;
    cast: latents get the denoiser's type; one_step: with a single step the loop is no other.
    """

    timestep: Callable[[Tensor, int, Any, Tensor], Tensor]
    output: Callable[[Tensor, float | None, Any, Mapping[str, Any]], Tensor]
    latent: str = "hidden_states"
    scaled: bool = True
    doubled: bool = False
    cast: bool = False
    one_step: bool = True


def _guided(out: Tensor, scale: float | None) -> Tensor:
    """Classifier-free guidance, rows without the prompt first."""
    if scale is None:
        return out
    free, told = out.chunk(2)
    return free + scale * (told - free)


def _of_unet(out: Tensor, scale: float | None, model: Any, options: Mapping[str, Any]) -> Tensor:
    guided = _guided(out, scale)
    rescale = options.get("guidance_rescale") or 0.0
    if scale is None or rescale <= 0:
        return guided
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    told = out.chunk(2)[1]
    return rescale_noise_cfg(guided, told, guidance_rescale=rescale)  # type: ignore


def _of_pixart(out: Tensor, scale: float | None, model: Any, options: Mapping[str, Any]) -> Tensor:
    return _mean(_guided(out, scale), model)


def _of_sana(out: Tensor, scale: float | None, model: Any, options: Mapping[str, Any]) -> Tensor:
    return _mean(_guided(out.float(), scale), model)


def _of_dit(out: Tensor, scale: float | None, model: Any, options: Mapping[str, Any]) -> Tensor:
    channels = model.config.in_channels
    if scale is not None:
        told, free = out[:, :channels].chunk(2)
        half = free + scale * (told - free)
        out = torch.cat([torch.cat([half, half]), out[:, channels:]], 1)
    return _mean(out, model)


def _mean(out: Tensor, model: Any) -> Tensor:
    """Without the variance that some denoisers predict as well."""
    learned = model.config.out_channels // 2 == model.config.in_channels
    return out[:, : model.config.in_channels] if learned else out


def _per_row(t: Tensor, rows: int, model: Any, z: Tensor) -> Tensor:
    return t.reshape(1).to(z.device).expand(rows)


ADAPTERS: dict[str, Adapter] = {
    "UNet2DConditionModel": Adapter(lambda t, *_: t, _of_unet, latent="sample"),
    "SD3Transformer2DModel": Adapter(
        _per_row, lambda out, scale, *_: _guided(out, scale), scaled=False
    ),
    "FluxTransformer2DModel": Adapter(
        lambda t, rows, model, z: t.expand(rows).to(z.dtype) / 1000,
        lambda out, *_: out,
        scaled=False,
    ),
    # Its pipeline takes the predicted clean latents for those of a single step.
    "PixArtTransformer2DModel": Adapter(_per_row, _of_pixart, one_step=False),
    "SanaTransformer2DModel": Adapter(
        lambda t, rows, model, z: t.expand(rows) * model.config.timestep_scale,
        _of_sana,
        scaled=False,
        cast=True,
    ),
    "DiTTransformer2DModel": Adapter(_per_row, _of_dit, doubled=True),
}


def adapter_of(pipe: Any) -> Adapter:
    """By the class of the denoiser or one of its parents.

    Raises ConfigError naming the adapter that is missing.
    """
    _, model = denoiser_of(pipe)
    for kind in type(model).__mro__:
        if kind.__name__ in ADAPTERS:
            return ADAPTERS[kind.__name__]
    raise ConfigError(
        f"nobody has told how {type(pipe).__name__} calls its {type(model).__name__}: put a "
        f"adapters.Adapter into adapters.ADAPTERS[{type(model).__name__!r}]"
    )
