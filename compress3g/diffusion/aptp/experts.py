"""The networks behind a router: cut from the dense denoiser, loaded when needed, few at a time."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...core import Keep, materialize
from ...errors import ConfigError
from ...profile import size_of
from ..blocks import units_in_blocks
from ..pruned_models import KEY, class_of, describe
from ..units import units_of
from .codes import Space, unbundled

Build = Callable[[int], nn.Module]


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert of a router. share: of the dense denoiser's multiply-adds; usage: of prompts."""

    index: int
    params: int
    bytes: int
    share: float
    usage: float
    bypassed: int

    def report(self) -> str:
        """One line."""
        blocks = f", {self.bypassed} blocks bypassed" if self.bypassed else ""
        return (
            f"expert {self.index}: {self.params:,} parameters, "
            f"{self.share:.1%} of the multiply-adds, "
            f"{self.usage:.1%} of the training prompts{blocks}"
        )


def expert_of(denoiser: Any, space: Space, keep: Keep, *, index: int = 0) -> Any:
    """A copy of the dense denoiser without what an expert leaves out, of the pruned class.

    What is not cut is not copied: it shares memory with the dense denoiser.
    """
    # Parameters of its own, which surgery may change, over the same memory.
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad)
        for p in denoiser.parameters()
    }
    shared |= {id(b): b.detach() for b in denoiser.buffers()}
    made = copy.deepcopy(denoiser, shared)
    vars(made).pop("forward", None)  # a routed pipeline answers in the place of its denoiser
    units = units_of(denoiser)
    kept = unbundled(keep, space, units)
    blocks = [u for u in space.units if u.bypass is not None]
    closed = [u for u in blocks if not len(keep[u.name])]
    wanted = {**kept, **{u.name: keep[u.name] for u in blocks}}
    todo = units_in_blocks(denoiser, units) if blocks else units
    materialize(made, todo, wanted)
    kind: Any = type(denoiser)
    made.__class__ = class_of(kind)
    facts = {"method": "aptp", "ratio": 0.0, "expert": index}
    made.register_to_config(**{KEY: describe(units, kept, (), facts, closed)})
    return made.eval()


class ExpertCache:
    """Experts by index, the least recently used ones dropped when together they need too much.

    limit: bytes, or None for all of them.
    """

    def __init__(self, build: Build, limit: int | None = None) -> None:
        self._build, self._limit = build, limit
        self._held: OrderedDict[int, nn.Module] = OrderedDict()
        self._bytes: dict[int, int] = {}

    def get(self, index: int) -> nn.Module:
        """The expert, made or loaded if it is not there."""
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        expert = self._build(index)
        self._bytes[index] = size_of(expert).bytes
        self._held[index] = expert
        while self._limit is not None and self.bytes > self._limit and len(self._held) > 1:
            self._held.popitem(last=False)
        return expert

    @property
    def bytes(self) -> int:
        """Of the experts that are held."""
        return sum(self._bytes[i] for i in self._held)

    def fits(self, indices: set[int]) -> bool:
        """Whether these experts can be held together; unknown ones count as the largest known."""
        if self._limit is None:
            return True
        for i in indices - self._bytes.keys():
            self.get(i)
        return sum(self._bytes[i] for i in indices) <= self._limit


def check_index(index: int, count: int) -> int:
    """The index. Raises ConfigError when there is no such expert."""
    if not 0 <= index < count:
        raise ConfigError(f"there is no expert {index}: give 0 to {count - 1}")
    return index


def describe_expert(index: int, expert: nn.Module, share: float, usage: float) -> Expert:
    """What `report` says."""
    size = size_of(expert)
    about: Any = getattr(expert, "config", {}).get(KEY) or {}
    return Expert(index, size.params, size.bytes, share, usage, len(about.get("bypassed", {})))


def move(expert: nn.Module, like: torch.nn.Parameter) -> nn.Module:
    """The expert in the place and type of a parameter."""
    here = next(expert.parameters())
    if here.device == like.device and here.dtype == like.dtype:
        return expert
    return expert.to(device=like.device, dtype=like.dtype)
