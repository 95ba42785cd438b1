"""Heads, neurons and channel groups of diffusers' denoisers as Units, found by attribute names."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..core import Cut, Units
from ..errors import CutError


def units_of(model: nn.Module) -> list[Units]:
    """Attention heads, feed-forward neurons, and channel groups inside residual blocks.

    Covers UNet2DConditionModel (SD, SDXL), SD3Transformer2DModel and FluxTransformer2DModel.
    Raises CutError when nothing of a model can be removed.
    """
    units = [u for name, module in model.named_modules() for u in _of(name, module)]
    if not units:
        raise CutError(f"{type(model).__name__} has no unit of a known kind")
    return units


def _of(name: str, module: nn.Module) -> Iterator[Units]:
    if all(hasattr(module, a) for a in ("to_q", "to_k", "to_v", "heads")):
        # Flux's single blocks have no projection of their own: the block's reads heads and neurons.
        if getattr(module, "to_out", None) is not None:
            yield _attention(name, module)
    elif hasattr(module, "proj_mlp") and hasattr(module, "attn"):
        yield from _single_block(name, module)
    elif hasattr(module, "conv1") and hasattr(module, "conv2") and hasattr(module, "norm2"):
        if isinstance(module.norm2, nn.GroupNorm):
            yield _residual(name, module)
    elif isinstance(net := getattr(module, "net", None), nn.ModuleList) and hasattr(net[0], "proj"):
        yield _feed_forward(name, net)


def _attention(name: str, module: nn.Module) -> Units:
    width = int(module.to_q.out_features) // int(module.heads)  # type: ignore[union-attr, arg-type]
    writers = ["to_q", "to_k", "to_v"]
    writers += [w for w in ("add_q_proj", "add_k_proj", "add_v_proj") if _has(module, w)]
    readers = ["to_out.0", *(["to_add_out"] if _has(module, "to_add_out") else [])]
    return Units(
        f"{name}.heads",
        int(module.heads),  # type: ignore[arg-type]
        writes=tuple(Cut(f"{name}.{w}", "out", width) for w in writers),
        reads=tuple(Cut(f"{name}.{r}", "in", width) for r in readers),
        attrs=_counts(name, module, width),
    )


def _counts(name: str, module: nn.Module, width: int) -> tuple[tuple[str, int], ...]:
    per_unit = {"heads": 1, "sliceable_head_dim": 1, "inner_dim": width, "inner_kv_dim": width}
    return tuple((f"{name}.{a}", n) for a, n in per_unit.items() if hasattr(module, a))


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.Linear)


def _feed_forward(name: str, net: nn.ModuleList) -> Units:
    size = int(net[-1].in_features)  # type: ignore[arg-type]
    up = f"{name}.net.0.proj"
    # GEGLU writes [values | gates] with one projection.
    halves = int(net[0].proj.out_features) // size  # type: ignore[union-attr, arg-type]
    return Units(
        f"{name}.neurons",
        size,
        writes=tuple(Cut(up, "out", offset=i * size) for i in range(halves)),
        reads=(Cut(f"{name}.net.{len(net) - 1}", "in"),),
    )


def _single_block(name: str, module: nn.Module) -> Iterator[Units]:
    attention = module.attn
    heads = int(attention.heads)  # type: ignore[union-attr, arg-type]
    width = int(attention.to_q.out_features) // heads  # type: ignore[union-attr, arg-type]
    yield Units(
        f"{name}.attn.heads",
        heads,
        writes=tuple(Cut(f"{name}.attn.{w}", "out", width) for w in ("to_q", "to_k", "to_v")),
        reads=(Cut(f"{name}.proj_out", "in", width),),
        attrs=_counts(f"{name}.attn", attention, width),  # type: ignore[arg-type]
    )
    neurons = int(module.proj_mlp.out_features)  # type: ignore[union-attr, arg-type]
    yield Units(
        f"{name}.neurons",
        neurons,
        writes=(Cut(f"{name}.proj_mlp", "out"),),
        reads=(Cut(f"{name}.proj_out", "in", offset=heads * width),),
        attrs=((f"{name}.mlp_hidden_dim", 1),),
    )


def _residual(name: str, module: nn.Module) -> Units:
    """Whole groups of the second norm: the channels between the two convolutions."""
    norm = module.norm2
    assert isinstance(norm, nn.GroupNorm)
    width = norm.num_channels // norm.num_groups
    writes = [Cut(f"{name}.conv1", "out", width), Cut(f"{name}.norm2", "out", width)]
    if _has(module, "time_emb_proj"):
        # "scale_shift" embeddings are [scale | shift], each as wide as the channels.
        halves = int(module.time_emb_proj.out_features) // norm.num_channels  # type: ignore[union-attr, arg-type]
        offsets = [i * norm.num_channels for i in range(halves)]
        writes += [Cut(f"{name}.time_emb_proj", "out", width, offset) for offset in offsets]
    return Units(
        f"{name}.groups",
        norm.num_groups,
        writes=tuple(writes),
        reads=(Cut(f"{name}.conv2", "in", width),),
    )
