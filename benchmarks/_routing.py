"""What routing takes of one denoising step of a model of published size, with random weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel

from compress3g.diffusion.aptp import AptpConfig, Router
from compress3g.diffusion.aptp.codes import Space, skeleton_space
from compress3g.profile import compare


def over_a_large_step(config: AptpConfig) -> float:
    """For a U-Net and a router as large as Stable Diffusion 2.1's, with random weights.

    One row of 256 pixels, the least that a step can be; time does not depend on what weights say.
    """
    unet = UNet2DConditionModel(
        sample_size=32, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    ).eval()  # fmt: skip
    noise = torch.Generator().manual_seed(0)
    units, order = skeleton_space(unet, {"bundle": config.bundle, "depth": config.depth})
    space, config = Space(tuple(units), order, 1.0), replace(config, experts=8)
    router = Router(
        config=config, space=space, encoder="pipeline", mean=torch.zeros(1024), scale=1.0,
        weight=torch.randn(space.width, 1024, generator=noise), intercept=torch.zeros(space.width),
        logits=torch.randn(8, space.width, generator=noise), keep=(), shares=torch.ones(8),
        prices=torch.zeros(8), usage=torch.full((8,), 1 / 8),
    )  # fmt: skip
    x = torch.randn(1, 4, 32, 32, generator=noise)
    text = torch.randn(1, 77, 1024, generator=noise)
    embedding = torch.randn(1, 1024, generator=noise)
    with torch.inference_mode():
        step = compare(
            lambda: unet(x, 500, encoder_hidden_states=text), lambda: router.route(embedding),
            seconds=5.0, clock="cpu",
        )  # fmt: skip
    return step.median
