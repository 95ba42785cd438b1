"""What the scripts that train a small text-to-image pipeline from nothing share."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

DROPPED = 0.1  # captions left out, for guidance


def text_encoder(words: Any, *, width: int, layers: int = 3) -> Any:
    """An untrained CLIP text encoder for this tokenizer, as long as its longest caption."""
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=words.model_max_length,
        projection_dim=width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    encoder = CLIPTextModel(text)
    # CLIP's 0.02 is a tenth of what its layers add to it at first: words would all look alike.
    for embedding in (m for m in encoder.modules() if isinstance(m, nn.Embedding)):
        nn.init.normal_(embedding.weight, std=0.5)
    return encoder


def denoiser(channels: tuple[int, ...], heads: tuple[int, ...], *, inputs: int, width: int) -> Any:
    """An untrained U-Net at 16x16, 8x8 and 4x4: channels and attention heads by level."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=inputs,
        out_channels=inputs,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=heads,  # diffusers means their number
        norm_num_groups=8,
        # Words pooled into the time embedding reach every block from the first step on.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def pipeline(vae: Any, words: Any, encoder: Any, unet: Any) -> Any:
    """A StableDiffusionPipeline that samples a flow by DPM-Solver++."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flow_loss(
    unet: nn.Module,
    encoder: nn.Module,
    latents: Tensor,
    ids: Tensor,
    random: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error of the predicted velocity, noise - latents.

    Times lean towards noise, where only the caption can tell what to draw.
    """
    noise = torch.randn(latents.shape, device=latents.device, generator=random)
    time_ = 0.6 + torch.randn(len(latents), device=latents.device, generator=random)
    time_ = time_.sigmoid()
    t = time_[:, None, None, None]
    words = encoder(ids)[0]
    predicted = unet((1 - t) * latents + t * noise, 1000 * time_, words).sample
    return (predicted.float() - (noise - latents)).square().mean()


class Average:
    """Exponential average of parameters over updates."""

    def __init__(self, modules: list[nn.Module], most: float = 0.998) -> None:
        self.modules = modules
        self.most = most
        self.shadow = [copy.deepcopy(m).requires_grad_(False) for m in modules]

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = min(self.most, (1 + step) / (10 + step))
        for average, module in zip(self.shadow, self.modules, strict=True):
            pairs = list(zip(average.parameters(), module.parameters(), strict=True))
            torch._foreach_lerp_([a for a, _ in pairs], [p for _, p in pairs], 1 - keep)

    def take(self) -> None:
        """The modules become what they are on average."""
        for module, mean in zip(self.modules, self.shadow, strict=True):
            for p, average in zip(module.parameters(), mean.parameters(), strict=True):
                p.data.copy_(average)  # buffers, such as those of batch norms, are the module's own
            module.eval()


def learning_rate(most: float, step: int, spent: float) -> float:
    """Warm-up over 100 steps, then half a cosine over the share of time that is spent."""
    return most * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * spent)))


def sample(
    pipe: Any, captions: list[str], *, steps: int, guidance: float, seed: int, output: str = "pt"
) -> Tensor:
    """Images (n, 3, h, w) in [0, 1], one generator per image: none depends on its neighbours."""
    images = []
    for first in range(0, len(captions), 64):
        part = captions[first : first + 64]
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        drawn = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type=output,
        )
        images.append(drawn.images)
    return torch.cat(images)
