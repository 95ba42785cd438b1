"""Heads, neurons and channel groups of diffusers' denoisers as Units, found by attribute names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..core import Cut, Units
from ..errors import CutError


@dataclass(frozen=True, slots=True)
class Skipped:
    """A module that has units of a known kind, and why they stay."""

    name: str
    reason: str


def units_of(model: nn.Module) -> list[Units]:
    """Attention heads, feed-forward neurons, and channel groups inside residual blocks.

    Covers UNet2DConditionModel (SD, SDXL), SD3Transformer2DModel, FluxTransformer2DModel,
    DiTTransformer2DModel, PixArtTransformer2DModel and SanaTransformer2DModel, and others made of
    the same parts. `skipped_of` says what is left out. Raises CutError when nothing of a model can
    be removed, or when projections are fused.
    """
    units = [u for u in _found(model) if isinstance(u, Units)]
    if not units:
        reasons = "".join(f"; {s.name}: {s.reason}" for s in skipped_of(model)[:1])
        raise CutError(f"{type(model).__name__} has no unit of a known kind{reasons}")
    return units


def skipped_of(model: nn.Module) -> list[Skipped]:
    """What looks like heads, neurons or channel groups and cannot be cut exactly."""
    return [s for s in _found(model) if isinstance(s, Skipped)]


def kind_of(units: Units) -> str:
    """The last part of the name: "heads", "neurons" or "groups".

    >>> kind_of(Units("blocks.0.ff.neurons", 8))
    'neurons'
    """
    return units.name.rpartition(".")[2]


def _found(model: nn.Module) -> Iterator[Units | Skipped]:
    for name, module in model.named_modules():
        yield from _of(name, module)


def _of(name: str, module: nn.Module) -> Iterator[Units | Skipped]:
    if all(hasattr(module, a) for a in ("to_q", "to_k", "to_v", "heads")):
        # Flux's single blocks have no projection of their own: the block's reads heads and neurons.
        if getattr(module, "to_out", None) is not None:
            yield _attention(name, module)
    elif hasattr(module, "proj_mlp") and hasattr(module, "attn"):
        yield from _single_block(name, module)
    elif all(hasattr(module, a) for a in ("conv_inverted", "conv_depth", "conv_point")):
        yield _gated_convolution(name, module)
    elif hasattr(module, "conv1") and hasattr(module, "conv2") and hasattr(module, "norm2"):
        yield _residual(name, module)
    elif isinstance(net := getattr(module, "net", None), nn.ModuleList) and len(net):
        if hasattr(net[0], "proj") and isinstance(net[-1], nn.Linear):
            yield _feed_forward(name, net)
        else:
            yield Skipped(name, f"a feed-forward that starts with a {type(net[0]).__name__}")


def _across_heads(module: nn.Module, width: int) -> str | None:
    """The name of a norm that mixes all heads' queries or keys, if there is one."""
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        weight = getattr(getattr(module, name, None), "weight", None)
        if weight is not None and weight.numel() > width:
            return name
    return None


def _attention(name: str, module: nn.Module) -> Units | Skipped:
    heads = int(module.heads)  # type: ignore[arg-type]
    width = int(module.to_q.out_features) // heads  # type: ignore[union-attr, arg-type]
    groups = int(module.to_k.out_features) // width  # type: ignore[union-attr, arg-type]
    if getattr(module, "fused_projections", False):
        raise CutError(f"{name}: its projections are fused: call unfuse_qkv_projections() first")
    if hasattr(getattr(module, "processor", None), "to_k_ip"):
        raise CutError(
            f"{name}: an IP-Adapter is loaded: call unload_ip_adapter() first, "
            "and compress3g.diffusion.load_ip_adapter once it is pruned"
        )
    if (norm := _across_heads(module, width)) is not None and heads > 1:
        return Skipped(name, f"{norm} normalises over all heads, so cutting some is not exact")
    if heads % groups:
        return Skipped(name, f"{heads} query heads do not share {groups} key heads evenly")
    shared = heads // groups  # query heads per key head: these go together
    writers = [("to_q", shared), ("to_k", 1), ("to_v", 1)]
    writers += [
        (w, shared if w == "add_q_proj" else 1)
        for w in ("add_q_proj", "add_k_proj", "add_v_proj")
        if _has(module, w)
    ]
    readers = ["to_out.0", *(["to_add_out"] if _has(module, "to_add_out") else [])]
    return Units(
        f"{name}.heads",
        groups,
        writes=tuple(Cut(f"{name}.{w}", "out", width * n) for w, n in writers),
        reads=tuple(Cut(f"{name}.{r}", "in", width * shared) for r in readers),
        attrs=_counts(name, module, width, shared),
    )


def _counts(
    name: str, module: nn.Module, width: int, shared: int = 1
) -> tuple[tuple[str, int], ...]:
    per_unit = {
        "heads": shared,
        "sliceable_head_dim": shared,
        "inner_dim": width * shared,
        "inner_kv_dim": width,
    }
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


def _gated_convolution(name: str, module: nn.Module) -> Units:
    """Sana's feed-forward: [values | gates], each through a depthwise convolution of its own."""
    size = int(module.conv_point.in_channels)  # type: ignore[union-attr, arg-type]
    return Units(
        f"{name}.neurons",
        size,
        writes=tuple(
            Cut(f"{name}.{conv}", "out", offset=half * size)
            for conv in ("conv_inverted", "conv_depth")
            for half in range(2)
        ),
        reads=(Cut(f"{name}.conv_point", "in"),),
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


def _residual(name: str, module: nn.Module) -> Units | Skipped:
    """Whole groups of the second norm: the channels between the two convolutions."""
    norm = module.norm2
    if not isinstance(norm, nn.GroupNorm):
        return Skipped(name, f"its second norm is a {type(norm).__name__}, no GroupNorm")
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
