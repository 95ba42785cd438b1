"""Whole blocks of diffusers' denoisers as Units: what can be bypassed, and how."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from ..core import Units
from .standalone import passed_on
from .units import units_of

# What a bypassed transformer block is called with and returns: "first", "pair", ... of `passed_on`.
_BLOCKS = {
    "JointTransformerBlock": "pair",
    "FluxTransformerBlock": "pair",
    "FluxSingleTransformerBlock": "pair",
    "BasicTransformerBlock": "first",
    "SanaTransformerBlock": "first",
}


def blocks_of(model: nn.Module) -> list[Units]:
    """Blocks whose input can take the place of their output, in the order in which they run.

    Of a U-Net: residual blocks that keep the width of what flows through them, and transformers;
    of a transformer: its blocks. Those whose output has another width or meaning are left out.
    """
    found: list[Units] = []
    for name, module in model.named_modules():
        # Blocks inside a block go with it.
        if not any(name.startswith(f"{u.bypass}.") for u in found):
            found += [_block(name, kind) for kind in _kinds(name, module)]
    return found


def units_in_blocks(model: nn.Module, units: Sequence[Units] | None = None) -> list[Units]:
    """`blocks_of` a model, then its units (default: all of `units_of`), told which they are in."""
    units = units_of(model) if units is None else units
    blocks = blocks_of(model)

    def home(u: Units) -> str | None:
        inside = (b.name for b in blocks if u.name.startswith(f"{b.bypass}."))
        return next(inside, None)

    return [*blocks, *(replace(u, inside=home(u)) for u in units)]


def kind_of_block(u: Units) -> str:
    """How the block is passed by, a word that `passed_on` knows."""
    assert isinstance(u.skip, functools.partial)
    return str(u.skip.args[0])


def _block(name: str, kind: str) -> Units:
    return Units(f"{name}.block", 1, bypass=name, skip=functools.partial(passed_on, kind))


def _kinds(name: str, module: nn.Module) -> Iterator[str]:
    """One word if the module can be bypassed, none if not."""
    kind = type(module).__name__
    if kind == "ResnetBlock2D":
        if module.conv_shortcut is None and not (module.up or module.down):
            yield "first"
        elif name.startswith("up_blocks.") and not name.endswith(".resnets.0"):
            # It reads [what flows | what the way down left]; the first of a level changes width.
            yield f"channels {module.out_channels}"
    elif kind == "Transformer2DModel":
        yield "tuple"
    elif kind in _BLOCKS and not getattr(module, "context_pre_only", False):
        norm = getattr(module, "norm1", None)
        # DiT reads the first block's embedding of classes once more, after the last block.
        if name != "transformer_blocks.0" or getattr(norm, "emb", None) is None:
            yield _BLOCKS[kind]
