"""What can be removed: slices of weights that belong to one interchangeable thing, and its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import CutError

Axis: TypeAlias = Literal["out", "in"]


@dataclass(frozen=True, slots=True)
class Cut:
    """One slice per unit of one module's weight.

    module: qualified name of a module or of a bare parameter, "blocks.0.attn.to_q", "mixer.A_log"
    axis:   "out" (weight dimension 0, bias and norm statistics with it) or "in" (dimension 1)
    chunk:  consecutive rows per unit: the head width for heads, 1 for neurons
    offset: first row of unit 0; fused projections use several cuts at different offsets
    """

    module: str
    axis: Axis
    chunk: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.offset < 0:
            raise CutError(
                f"{self.module}: chunk {self.chunk} and offset {self.offset} cannot be cut"
            )

    def slots(self, index: Int[Tensor, "k"]) -> Int[Tensor, "k*{self.chunk}"]:
        """Rows (or columns) that belong to the units of `index`.

        >>> Cut("to_q", "out", chunk=2, offset=10).slots(torch.tensor([0, 3]))
        tensor([10, 11, 16, 17])
        """
        within = torch.arange(self.chunk, device=index.device)
        return (self.offset + index[:, None] * self.chunk + within).reshape(-1)


@dataclass(frozen=True, slots=True)
class Units:
    """`size` interchangeable removable things: heads, neurons, channel groups, blocks, voxels.

    writes: cuts that produce the units (axis "out")
    reads:  cuts that consume them (axis "in"); the gate multiplies the input of each reader
    bypass: name of a module removed as a whole (then size == 1 and there are no cuts)
    skip:   what the bypassed module returns when absent, (args, kwargs) -> output; by default its
            first positional argument
    inside: name of the bypass Units that contains these units; a closed parent closes them
    attrs:  (path, per_unit) pairs: integer attributes that become per_unit x kept after surgery
    cost:   what ONE unit costs, by kind: {"params": ..., "bytes": ..., "flops": ..., "units": 1}

    Units without cuts and without bypass are abstract (voxels, tokens, codes): the core counts and
    selects them, their domain applies and removes them.
    """

    name: str
    size: int
    writes: tuple[Cut, ...] = ()
    reads: tuple[Cut, ...] = ()
    bypass: str | None = None
    skip: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None
    inside: str | None = None
    attrs: tuple[tuple[str, int], ...] = ()
    cost: Mapping[str, float] = field(default_factory=lambda: {"units": 1.0})

    def __post_init__(self) -> None:
        if self.size < 1:
            raise CutError(f"units {self.name!r} have size {self.size}: need at least one")
        if self.bypass is not None and (self.size != 1 or self.writes or self.reads):
            raise CutError(
                f"units {self.name!r} bypass {self.bypass}: they must be one, without cuts"
            )
        if any(cut.axis != "out" for cut in self.writes) or any(c.axis != "in" for c in self.reads):
            raise CutError(f"units {self.name!r}: writes cut axis 'out' and reads cut axis 'in'")
