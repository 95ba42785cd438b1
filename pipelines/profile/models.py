"""Two models to profile, each dense and with 40 % of its prunable parameters removed.

Random weights: what a model costs does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from compress3g.core import Budget, Units, materialize, price, select

Prepared = tuple[nn.Module, Callable[[], object]]


def bert() -> Prepared:
    """all-MiniLM's shape (6 layers, width 384), 8 sentences of 128 tokens."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    model = transformers.BertModel(config).eval()
    tokens = torch.randint(0, config.vocab_size, (8, 128))
    return model, torch.no_grad()(lambda: model(tokens))


def pruned_bert() -> Prepared:
    """The same, 60 % of the prunable parameters kept by magnitude."""
    from compress3g.transformer import units_of

    model, run = bert()
    _prune(model, units_of(model))
    return model, run


def unet() -> Prepared:
    """A U-Net of Stable Diffusion's kind, a quarter as wide, one step on a 32x32 latent."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=32, block_out_channels=(80, 160, 320, 320), cross_attention_dim=192,
        attention_head_dim=8, norm_num_groups=16,
    ).eval()  # fmt: skip
    latent, text = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 192)
    return model, torch.no_grad()(lambda: model(latent, 500, text))


def pruned_unet() -> Prepared:
    """The same, 60 % of the prunable parameters kept by magnitude."""
    from compress3g.diffusion import units_of

    model, run = unet()
    _prune(model, units_of(model))
    return model, run


def _prune(model: nn.Module, units: list[Units]) -> None:
    from compress3g.criteria import magnitude

    priced = price(model, units)
    keep = select(magnitude(model, priced), priced, Budget(0.6), normalize="z")
    materialize(model, priced, keep)
