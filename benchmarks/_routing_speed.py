"""What routing costs: next to a denoising step, and in a mixed batch next to the dense pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

import compress3g.diffusion as cd
from compress3g.diffusion.aptp import AptpConfig, AptpPipeline, Router
from compress3g.diffusion.aptp.codes import Space, skeleton_space
from compress3g.diffusion.pipelines import recording
from compress3g.profile import compare

ROUTED = Path(__file__).parent.parent / "pipelines" / "digits_aptp"
MIXED = (7, 24)  # prompts: each expert's call has a fixed cost, which few prompts pay dearly


def speed_of(pipe: Any, prompts: Sequence[str], guidance: float) -> dict[str, float]:
    """Of the shipped router and experts, next to the dense pipeline.

    Routing over a step, a mixed batch over a dense one, paired times of one thread; and the largest
    difference of a pixel between a batch and single calls.
    """
    owner, few = AptpPipeline.from_pretrained(ROUTED), list(prompts[: MIXED[0]])
    with recording(pipe) as calls:
        cd.generate(pipe, few, steps=2, guidance=guidance, output="latent")
    embeddings = owner.embed(few)
    how: dict[str, Any] = {"seed": 0, "steps": 4, "guidance": guidance}
    with torch.inference_mode():
        step = compare(
            lambda: calls[0].run(pipe.unet), lambda: owner.router.route(embeddings),
            seconds=4.0, clock="cpu",
        )  # fmt: skip

    def mixed(count: int) -> float:
        many = list(prompts[:count])
        return compare(
            lambda: cd.generate(pipe, many, **how), lambda: owner.generate(many, **how),
            seconds=8.0, clock="cpu",
        ).median  # fmt: skip

    together = owner.generate(few, **how)
    alone = [owner.generate([p], **{**how, "seed": i})[0] for i, p in enumerate(few)]
    return {
        "routing over a step": step.median,
        "routing over a step of 866 million parameters": over_a_large_step(owner.router.config),
        **{f"time of a mixed batch of {n} over dense": mixed(n) for n in MIXED},
        "batch of 7 against single calls": float((together - torch.stack(alone)).abs().max()),
    }


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
