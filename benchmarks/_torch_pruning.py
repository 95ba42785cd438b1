"""torch-pruning's pruner on a BERT, a Llama with grouped queries and a U-Net, at a given budget."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from compress3g.diffusion import units_of
from compress3g.errors import CutError

Backward = Callable[[Any], object]


def _prune(model: Any, example: dict[str, Any], backward: Backward | None, **how: Any) -> None:
    """By its group magnitude, or by its group Taylor score once `backward` has left gradients."""
    import torch_pruning as tp

    kinds = tp.importance.GroupMagnitudeImportance, tp.importance.GroupTaylorImportance
    if backward is not None:
        backward(model)
    tp.pruner.BasePruner(
        model,
        example,
        importance=kinds[0](p=2) if backward is None else kinds[1](),
        pruning_ratio=0.0,
        prune_num_heads=True,
        prune_head_dims=False,
        root_module_types=[torch.nn.Linear],
        **how,
    ).step()


def cut_bert(
    model: Any, counts: dict[str, int], gone: float, backward: Backward | None = None
) -> Any:
    """Our counts of heads and neurons per layer."""
    ratios, heads, shares = {}, {}, {}
    ignored = [model.embeddings, model.pooler]
    for i, layer in enumerate(model.encoder.layer):
        inner, neurons = layer.attention.self, layer.intermediate.dense
        ratios[neurons] = 1 - counts[f"encoder.layer.{i}.neurons"] / neurons.out_features
        share = 1 - counts[f"encoder.layer.{i}.attention.heads"] / inner.num_attention_heads
        for projection in (inner.query, inner.key, inner.value):
            heads[projection] = inner.num_attention_heads
            ratios[projection] = shares[projection] = share
        for block in (layer.attention.output, layer.output):
            ignored += [block.dense, block.LayerNorm]
    ids = torch.ones(1, 8, dtype=torch.long)
    _prune(
        model,
        {"input_ids": ids, "attention_mask": ids},
        backward,
        pruning_ratio_dict=ratios,
        num_heads=heads,
        head_pruning_ratio=max(shares.values()),
        head_pruning_ratio_dict=shares,
        ignored_layers=ignored,
        output_transform=lambda out: out.last_hidden_state.sum(),
    )
    for layer in model.encoder.layer:
        inner = layer.attention.self
        inner.num_attention_heads = inner.query.out_features // inner.attention_head_size
        inner.all_head_size = inner.query.out_features
    return model


def cut_llama(
    model: Any, counts: dict[str, int], gone: float, backward: Backward | None = None
) -> Any:
    """`gone` parameters in all: it takes the same number of query heads out of every group.

    Keys and values stay, so one head a group goes where a third of the groups goes at ours, and
    neurons make up for the rest.
    """
    config, layers = model.config, model.model.layers
    queries, groups = config.num_attention_heads, config.num_key_value_heads
    kept = counts["model.layers.0.self_attn.heads"] / groups
    each = queries // groups
    removed = min(round((1 - kept) * each), each - 1) * groups
    head = 2 * config.hidden_size * layers[0].self_attn.head_dim  # of queries and output
    left = gone / len(layers) - removed * head
    share = left / (3 * config.hidden_size) / config.intermediate_size
    ratios, heads, ignored = {}, {}, [model.lm_head, model.model.embed_tokens]
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        heads |= {
            attention.q_proj: queries, attention.k_proj: groups, attention.v_proj: groups,
        }  # fmt: skip
        ratios |= {projection: removed / queries for projection in heads}
        ratios |= {mlp.gate_proj: share, mlp.up_proj: share}
        ignored += [attention.o_proj, mlp.down_proj]
    # Its tracer knows grouped queries by the expansion of keys; only this attention spells it out.
    model.config._attn_implementation = "eager"
    _prune(
        model,
        {"input_ids": torch.arange(8)[None], "use_cache": False},
        backward,
        pruning_ratio_dict=ratios,
        num_heads=heads,
        head_pruning_ratio=removed / queries,
        ignored_layers=ignored,
        output_transform=lambda out: out.logits.sum(),
    )
    for layer in layers:
        attention = layer.self_attn
        attention.num_key_value_groups = (
            attention.q_proj.out_features // attention.k_proj.out_features
        )
    return model


def cut_unet(
    unet: Any, call: Any, gone: float, backward: Backward | None = None, *, inner: bool = False
) -> Any:
    """A U-Net of diffusers without the share `gone` of its parameters, or as little more as it can.

    One ratio for all layers, searched for by halving. inner: the residual stream stays whole, as
    ours does; without it, its widths go with the rest. call: one of the denoiser's, to trace.
    """
    if backward is not None:
        backward(unet)
    size = sum(p.numel() for p in unet.parameters())
    low, high, best = 0.0, 0.95, None
    for _ in range(10):
        middle = (low + high) / 2
        small = _shrunk(unet, call, middle, taylor=backward is not None, inner=inner)
        if sum(p.numel() for p in small.parameters()) <= (1 - gone) * size:
            high, best = middle, small
        else:
            low = middle
    if best is None:
        raise CutError(f"torch-pruning does not get {gone:.0%} out of this U-Net")
    return best


def _shrunk(unet: Any, call: Any, share: float, *, taylor: bool, inner: bool) -> Any:
    import torch_pruning as tp
    from diffusers.models.attention_processor import Attention
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.upsampling import Upsample2D

    small = copy.deepcopy(unet).requires_grad_(True)
    for p, old in zip(small.parameters(), unet.parameters(), strict=True):
        p.grad = None if old.grad is None else old.grad.clone()
    layers = {n: m for n, m in small.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    if inner:
        cut = {c.module for u in units_of(small) for c in u.writes}
        ignored = [m for n, m in layers.items() if n not in cut]
    else:
        # Read by code that knows their widths.
        fixed = ("add_embedding", "time_embedding", "conv_out")
        ignored = [m for n, m in layers.items() if n.startswith(fixed)]
    attentions = [m for m in small.modules() if isinstance(m, Attention)]
    words = call.kwargs["encoder_hidden_states"][:1]
    importance = tp.importance
    pruner = tp.pruner.BasePruner(
        small,
        {"sample": call.args[0][:1], "timestep": torch.ones(1), "encoder_hidden_states": words},
        importance=importance.GroupTaylorImportance()
        if taylor
        else importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=share,
        num_heads={p: m.heads for m in attentions for p in (m.to_q, m.to_k, m.to_v)},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=share,
        ignored_layers=ignored,
        root_module_types=[nn.Conv2d, nn.Linear],
        output_transform=lambda out: out.sample.sum(),
    )
    pruner.step()
    for m in attentions:
        m.heads, m.inner_dim = pruner.num_heads[m.to_q], m.to_q.out_features
    for m in small.modules():
        if isinstance(m, (Downsample2D, Upsample2D)):
            m.channels = m.conv.in_channels
    return small.requires_grad_(False)
