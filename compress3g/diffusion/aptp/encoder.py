"""What a router sees of a prompt: the pipeline's own embedding, or that of another text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from ...errors import ConfigError, require

PIPELINE = "pipeline"  # the encoder that costs nothing: its embedding is there already


def embedding_in(arguments: Mapping[str, Any]) -> Float[Tensor, "b d"]:
    """One vector per row of what a denoiser is told: pooled text, or the mean over its tokens.

    Raises ConfigError when there is no text in it.
    """
    added = arguments.get("added_cond_kwargs") or {}
    for pooled in (arguments.get("pooled_projections"), added.get("text_embeds")):
        if isinstance(pooled, Tensor):
            return pooled.float()
    tokens = arguments.get("encoder_hidden_states")
    if not isinstance(tokens, Tensor):
        raise ConfigError(
            "the denoiser is told no text: a router needs a pipeline with prompts, or an --encoder"
        )
    mask = arguments.get("encoder_attention_mask")
    if isinstance(mask, Tensor) and mask.shape == tokens.shape[:2]:
        weight = mask.to(tokens).unsqueeze(-1)
        return (tokens * weight).sum(1).float() / weight.sum(1).clamp(min=1).float()
    return tokens.float().mean(1)


class TextEncoder:
    """Mean of a Hugging Face encoder's token states, of any folder with weights and tokenizer."""

    def __init__(self, folder: str | Path) -> None:
        transformers = require(
            "transformers", extra="diffusion", purpose="an encoder of its own for the router"
        )
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            self._model = transformers.AutoModel.from_pretrained(folder).eval()
        except (SafetensorError, OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"encoder {folder} cannot be loaded: {reason}") from None

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """One vector per prompt."""
        given = self._tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        states = self._model(**given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(-1).to(states)
        mean: Tensor = (states * mask).sum(1) / mask.sum(1)
        return mean.float()
