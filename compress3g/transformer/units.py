"""Attention heads, neurons and layers of Hugging Face transformers as Units.

Sites are found by the names of their projections, so one table serves the families that share
them; nothing is listed per model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..core import Cut, Units
from ..errors import CutError

# Query, key, value and output projections, relative to the module that holds them. Not those of T5
# and MPNet: all their layers add one table of biases, a column per head, so heads cannot differ.
_ATTENTION = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma, ViT
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # SigLIP, CLIP, BART, OPT
    ("self.query", "self.key", "self.value", "output.dense"),  # BERT, RoBERTa, ELECTRA
    ("attention.query", "attention.key", "attention.value", "output.dense"),  # BEiT, DeiT
    ("q_lin", "k_lin", "v_lin", "out_lin"),  # DistilBERT
)
# One projection for all three, and the output's: [q | k | v], or [q, k, v] of each head in turn.
_FUSED = (
    ("c_attn", "c_proj", False),  # GPT-2
    ("query_key_value", "dense", True),  # GPT-NeoX, Pythia
    ("Wqkv", "Wo", False),  # ModernBERT
)
_FUSED_GROUPS = ("qkv_proj", "o_proj")  # Phi-3: [q | k | v], with fewer keys and values
# The projections that write neurons, and the one that reads them.
_FEED_FORWARD = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
    (("intermediate.dense",), "output.dense"),
    (("lin1",), "lin2"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("up_proj",), "down_proj"),
    (("gate_up_proj",), "down_proj"),  # Phi-3: one projection, twice as wide
    (("Wi",), "Wo"),  # ModernBERT: the same
    (("c_fc",), "c_proj"),  # GPT-2
    (("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, Pythia
)
_TWICE = (("gate_up_proj",), ("Wi",))
_HEAD_WIDTH = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_per_head")
_HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "num_key_value_heads", "n_head")
_WIDTHS = ("all_head_size", "inner_dim", "split_size")


def units_of(model: nn.Module, *, depth: bool = False) -> list[Units]:
    """Heads (whole key-value groups) and neurons of every layer; with `depth` also the layers.

    A projection that carries an adapter is named itself, not what it is wrapped around.

    Raises CutError when the model has no attention or feed-forward whose names are known.
    """
    units = [*_heads(model), *_neurons(model)]
    if not units:
        raise CutError(
            f"{type(model).__name__} has no attention or feed-forward layer with known projections"
        )
    if not depth:
        return units
    layers = _layers(model, units)
    inside = {u.name: next((p for p in layers if u.name.startswith(f"{p}.")), None) for u in units}
    return [
        *(Units(f"{layer}.depth", 1, bypass=layer) for layer in layers),
        *(_within(u, inside[u.name]) for u in units),
    ]


def _within(u: Units, layer: str | None) -> Units:
    parent = None if layer is None else f"{layer}.depth"
    return Units(u.name, u.size, u.writes, u.reads, inside=parent, attrs=u.attrs)


@dataclass(frozen=True, slots=True)
class _Widths:
    head: int
    heads: int
    groups: int  # of keys and values

    @property
    def queries(self) -> int:
        """Query heads that share one key and value."""
        return self.heads // self.groups


def _child(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, or what an adapter there is wrapped around."""
    try:
        found = module.get_submodule(path)
    except AttributeError:
        return None
    inner = getattr(found, "base_layer", found)
    return inner if isinstance(inner, nn.Module) else found


def _heads(model: nn.Module) -> Iterator[Units]:
    for name, module in model.named_modules():
        for names in _ATTENTION:
            parts = [_child(module, n) for n in names]
            if all(isinstance(p, nn.Linear) for p in parts):
                yield _attention(name, module, names)
                break
        if all(_is_linear(_child(module, n)) for n in _FUSED_GROUPS):
            yield from _fused_groups(name, module)
        for fused, out, each in _FUSED:
            if all(_is_linear(_child(module, n)) for n in (fused, out)):
                yield from _fused(name, module, (fused, out), each)


def _attention(name: str, module: nn.Module, names: tuple[str, str, str, str]) -> Units:
    q, k, v, o = (f"{name}.{n}" if name else n for n in names)
    inner = names[0].rpartition(".")[0]
    holder = module.get_submodule(inner)
    path = f"{name}.{inner}".strip(".")
    widths = _widths(name, holder, *(_child(module, n) for n in names[:2]))
    per_group = widths.queries * widths.head
    attrs = []
    for attribute in _HEAD_COUNTS:
        if getattr(holder, attribute, None) in (widths.heads, widths.groups):
            whole = getattr(holder, attribute) == widths.heads
            attrs.append((f"{path}.{attribute}", widths.queries if whole else 1))
    attrs += [(f"{path}.{a}", per_group) for a in _WIDTHS if hasattr(holder, a)]
    return Units(
        f"{name}.heads",
        widths.groups,
        writes=(
            Cut(q, "out", per_group),
            Cut(k, "out", widths.head),
            Cut(v, "out", widths.head),
        ),
        reads=(Cut(o, "in", per_group),),
        attrs=tuple(attrs),
    )


def _is_linear(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _sizes(module: nn.Module | None) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2's Conv1D calls them nx and nf."""
    names = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("nx", "nf")
    inputs, outputs = (getattr(module, n) for n in names)
    return int(inputs), int(outputs)


def _fused(name: str, module: nn.Module, names: tuple[str, str], each: bool) -> Iterator[Units]:
    """Heads of one projection of q, k and v; nothing when it is not three times the output's."""
    projection, out = (f"{name}.{n}" for n in names)
    inner = _sizes(_child(module, names[1]))[0]
    width = next((int(getattr(module, a)) for a in _HEAD_WIDTH if hasattr(module, a)), 0)
    if not width or _sizes(_child(module, names[0]))[1] != 3 * inner:
        return
    writes = tuple(Cut(projection, "out", width, inner * i) for i in range(3))
    counts = tuple(
        (f"{name}.{a}", 1) for a in _HEAD_COUNTS if getattr(module, a, None) == inner // width
    )
    yield Units(
        f"{name}.heads",
        inner // width,
        writes=(Cut(projection, "out", 3 * width),) if each else writes,
        reads=(Cut(out, "in", width),),
        attrs=counts + tuple((f"{name}.{a}", width) for a in _WIDTHS if hasattr(module, a)),
    )


def _fused_groups(name: str, module: nn.Module) -> Iterator[Units]:
    """Key-value groups of one projection; its layer counts heads by the configuration."""
    config: Any = getattr(module, "config", None)
    width = int(getattr(module, "head_dim", 0))
    groups = int(getattr(module, "num_key_value_heads", 0))
    total = _sizes(_child(module, _FUSED_GROUPS[0]))[1]
    heads = _sizes(_child(module, _FUSED_GROUPS[1]))[0] // max(1, width)
    if not groups or total != (heads + 2 * groups) * width or config is None:
        return
    # All layers share one configuration, and after a cut they no longer agree on what it says.
    module.config = copy.copy(config)
    queries, (projection, out) = heads // groups, (f"{name}.{n}" for n in _FUSED_GROUPS)
    yield Units(
        f"{name}.heads",
        groups,
        writes=(
            Cut(projection, "out", queries * width),
            Cut(projection, "out", width, heads * width),
            Cut(projection, "out", width, (heads + groups) * width),
        ),
        reads=(Cut(out, "in", queries * width),),
        attrs=(
            (f"{name}.num_key_value_heads", 1),
            (f"{name}.config.num_attention_heads", queries),
        ),
    )


def _widths(name: str, holder: nn.Module, q: nn.Module | None, k: nn.Module | None) -> _Widths:
    width = next((getattr(holder, a) for a in _HEAD_WIDTH if hasattr(holder, a)), None)
    if width is None:
        heads = next((getattr(holder, a) for a in _HEAD_COUNTS if hasattr(holder, a)), None)
        if heads is None:
            raise CutError(f"{name}: nothing says how wide a head is ({', '.join(_HEAD_WIDTH)})")
        width = _sizes(q)[1] // int(heads)
    return _Widths(int(width), _sizes(q)[1] // int(width), _sizes(k)[1] // int(width))


def _neurons(model: nn.Module) -> Iterator[Units]:
    for name, module in model.named_modules():
        for writers, reader in _FEED_FORWARD:
            parts = [_child(module, n) for n in (*writers, reader)]
            if not all(_is_linear(p) for p in parts):
                continue
            size = _sizes(parts[-1])[0]
            times = 2 if writers in _TWICE else 1
            if any(_sizes(p)[1] != size * times for p in parts[:-1]):
                continue
            yield Units(
                f"{name}.neurons",
                size,
                writes=tuple(
                    Cut(f"{name}.{w}", "out", 1, size * i) for w in writers for i in range(times)
                ),
                reads=(Cut(f"{name}.{reader}", "in"),),
            )
            break


def _layers(model: nn.Module, units: list[Units]) -> list[str]:
    """Members of module lists that hold units: the layers of the stacks."""
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    members = [f"{n}.{i}" for n in lists for i in range(len(model.get_submodule(n)))]  # type: ignore[arg-type]
    return [m for m in members if any(u.name.startswith(f"{m}.") for u in units)]
