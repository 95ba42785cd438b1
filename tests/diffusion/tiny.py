"""Tiny random pipelines of diffusers' own classes, made offline, and denoisers without one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))
from architectures import ARCHITECTURES, dense  # noqa: F401

FAMILIES = [name for name in ARCHITECTURES if "2DModel" in name or "2DCondition" in name]


class Pipe:
    """As much of a pipeline as surgery looks at."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    def register_modules(self, **parts: Any) -> None:
        vars(self).update(parts)


def _autoencoder() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        **{"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4},
        **{"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)},
        sample_size=8,
    )


def classes(seed: int = 0) -> Any:
    """A DiT pipeline: conditioned on class numbers."""
    import diffusers

    torch.manual_seed(seed)
    denoiser = diffusers.DiTTransformer2DModel(
        **{"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 8, "sample_size": 8},
        **{"in_channels": 4, "out_channels": 4, "patch_size": 2, "num_embeds_ada_norm": 1000},
    )  # the pipeline's class for "none" is always 1000
    pipe = diffusers.DiTPipeline(denoiser.eval(), _autoencoder().eval(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


WORDS = ("a", "red", "blue", "seven", "three", "above")


def captions(seed: int = 0, scheduler: Any = None) -> Any:
    """A Stable Diffusion pipeline with a vocabulary of six words."""
    import diffusers
    import transformers

    torch.manual_seed(seed)
    pieces = ["<|startoftext|>", "<|endoftext|>", *WORDS]
    letters = sorted({c for w in WORDS for c in w})
    pieces += [*letters, *(f"{c}</w>" for c in letters)]
    tokenizer = transformers.CLIPTokenizer(
        vocab={p: i for i, p in enumerate(dict.fromkeys(pieces))}, merges=[], model_max_length=12
    )
    text = transformers.CLIPTextConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 12},
        **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=_autoencoder().eval(),
        text_encoder=transformers.CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=dense_copy("UNet2DConditionModel SD", seed),
        scheduler=scheduler or diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dense_copy(name: str, seed: int = 0) -> Any:
    """A fresh model of a family, at no risk of being shared between tests."""
    torch.manual_seed(seed)
    return ARCHITECTURES[name].build()


def random_scores(units: Any, seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    return {u.name: torch.rand(u.size, generator=g) for u in units}
