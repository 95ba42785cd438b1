"""Which readers add to one residual stream, so that each can mend what those before it left."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Units

_BLOCK = re.compile(r"(.*?)\.(\d+)\.")  # "model.layers", "3" of "model.layers.3.mlp.down_proj"
_SLACK = 8  # roundings of a sum of a few tensors


@dataclass(slots=True)
class _Block:
    """What goes through one block of a stack: states, and what its readers add to them."""

    before: Tensor | None = None
    after: Tensor | None = None
    added: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def streams_of(
    model: nn.Module, units: Sequence[Units], run: Callable[[], object]
) -> dict[str, str]:
    """Stack by reader, for stacks of blocks that add their readers' outputs to what passes through.

    Found by looking: in `run`, one forward, every block of the stack returns what it was given plus
    the outputs of its readers, and is given what the block before it returned, to the rounding of
    its numbers. Blocks that normalise after they add (BERT), or before (Gemma 2), do not.
    """
    names = dict.fromkeys(cut.module for u in units for cut in u.reads)
    places = {name: found for name in names if (found := _BLOCK.match(name))}
    blocks = {found.group(0)[:-1]: _Block() for found in places.values()}
    with ExitStack() as stack:
        for name, block in blocks.items():
            hook = model.get_submodule(name).register_forward_hook(_passes(block), with_kwargs=True)
            stack.callback(hook.remove)
        for name, found in places.items():
            hook = model.get_submodule(name).register_forward_hook(
                _adds(blocks[found.group(0)[:-1]])
            )
            stack.callback(hook.remove)
        run()
    stacks: dict[str, list[_Block]] = {}
    for name, block in blocks.items():
        stacks.setdefault(name.rpartition(".")[0], []).append(block)
    plain = {name for name, all_of in stacks.items() if _is_stream(all_of)}
    return {n: found.group(1) for n, found in places.items() if found.group(1) in plain}


def _passes(block: _Block) -> Callable[..., None]:
    def hook(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        block.before = args[0] if args else kwargs.get("hidden_states")
        block.after = out if isinstance(out, Tensor) else out[0]

    return hook


def _adds(block: _Block) -> Callable[..., None]:
    def hook(module: Any, args: Any, out: Tensor) -> None:
        block.added.append(out)

    return hook


def _is_stream(blocks: Sequence[_Block]) -> bool:
    last: Tensor | None = None
    for block in blocks:
        before, after = block.before, block.after
        if before is None or after is None or not block.added:
            return False
        if any(t.numel() != before.numel() for t in (after, *block.added)):
            return False
        if last is not None and not torch.equal(last, before):
            return False
        added = torch.stack([t.float().view_as(before) for t in block.added]).sum(0)
        off = (after.float() - before.float() - added).norm()
        rounding = _SLACK * torch.finfo(before.dtype).eps * (before.float().norm() + added.norm())
        if off > rounding or off > 0.1 * added.norm():
            return False
        last = after
    return True
