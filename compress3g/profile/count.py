"""Parameters and bytes of a model; floating-point operations of a function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..kernels import cost
from ._storage import tensors_in
from .formulas import missing_formulas


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a model holds; whatever shares memory is counted once."""

    params: int  # numbers in parameters
    bytes: int  # of parameters
    buffers: int  # numbers in buffers
    buffer_bytes: int
    state_bytes: int  # of what `state_dict()` stores: a file of the model, less its header


def size_of(model: nn.Module) -> Size:
    """Parameters, buffers and stored bytes of a model, tied weights once.

    >>> linear = nn.Linear(3, 2)
    >>> size_of(nn.Sequential(linear, linear)).params
    8
    """
    parameters = _unshared(model.parameters())
    kept = {id(p) for p in model.parameters()}
    buffers = _unshared(b for b in model.buffers() if id(b) not in kept)
    state = [v for v in model.state_dict(keep_vars=True).values() if isinstance(v, Tensor)]
    return Size(
        params=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        buffers=sum(b.numel() for b in buffers),
        buffer_bytes=sum(b.numel() * b.element_size() for b in buffers),
        state_bytes=sum(t.numel() * t.element_size() for t in _unshared(state)),
    )


def _unshared(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors without those that view the same numbers as another."""
    seen: dict[Any, Tensor] = {}
    for tensor in tensors:
        if tensor.layout == torch.strided and tensor.numel() and tensor.device.type != "meta":
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.numel())
        else:
            place = (tensor.device, id(tensor), tensor.dtype, tensor.numel())
        seen.setdefault(place, tensor)
    return list(seen.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of one run, 2 per multiply-add, and what they leave out."""

    by_op: dict[str, int]  # most first
    uncounted: dict[str, int]  # calls; operators about which nothing is known first
    device: str  # where most results were written: "cpu", "cuda:0"

    @property
    def total(self) -> int:
        """FLOPs of all counted operators. Half of it are the MACs that other papers give."""
        return sum(self.by_op.values())


def count_flops(fn: Callable[[], Any]) -> Flops:
    """Floating-point operations of one call of `fn`, backward passes in it too.

    Counts contractions (products of matrices, convolutions, attention) with torch's
    `FlopCounterMode`, the operators of `formulas.py`, and the operations of this package in
    whatever backend they run. Elementwise arithmetic and reductions are named in `uncounted`.

    >>> a = torch.ones(2, 3)
    >>> count_flops(lambda: (a @ a.T).relu())
    Flops(by_op={'aten.mm': 24}, uncounted={'aten.relu': 1}, device='cpu')
    """
    counter = FlopCounterMode(display=False, custom_mapping=missing_formulas())
    # Outside the counter's mode: it is shown what the counter runs, after decomposition.
    watch = _Watch(counter)
    with watch, counter, cost.observe(watch.operation):
        fn()
    counted = {str(op): n for op, n in _whole(counter).items()}
    counted.update(watch.ours)
    return Flops(
        by_op=dict(sorted(((k, n) for k, n in counted.items() if n), key=lambda i: -i[1])),
        uncounted=watch.uncounted(),
        device=watch.devices.most_common(1)[0][0] if watch.devices else "cpu",
    )


def _whole(counter: FlopCounterMode) -> dict[Any, int]:
    """Counts by operator over all modules."""
    return counter.get_flop_counts().get("Global", {})


# They move, make or name numbers and calculate none.
_MOVES = frozenset(
    """
    _conj _local_scalar_dense _to_copy _unsafe_view alias arange as_strided_ bernoulli
    bernoulli_ cat clone constant_pad_nd copy copy_ detach detach_ embedding empty empty_like
    empty_permuted empty_strided equal expand_copy exponential_ eye fill fill_ flip full
    full_like gather index index_copy index_copy_ index_fill_ index_put index_put_ index_select
    is_same_size item lift_fresh linspace masked_fill masked_fill_ masked_scatter masked_select
    native_dropout new_empty new_empty_strided new_full new_ones new_zeros nonzero normal_ ones
    ones_like pixel_shuffle pixel_unshuffle rand rand_like randint randint_like randn randn_like
    random_ randperm reflection_pad1d reflection_pad2d repeat replication_pad2d resize_ roll
    scalar_tensor scatter scatter_ select_backward set_ set_data slice_backward slice_scatter
    split_with_sizes_copy stack tril triu unfold_backward uniform_ upsample_nearest1d
    upsample_nearest2d upsample_nearest3d view_copy where zero_ zeros zeros_like
    """.split()  # noqa: SIM905 - as a list it would fill a page
)
_SIMPLE = {
    tag
    for name in ("pointwise", "reduction")
    if (tag := getattr(torch.Tag, name, None)) is not None
}


class _Watch(TorchDispatchMode):
    """Sees every operator that runs: which have no formula, and on which device."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ours: Counter[str] = Counter()
        self.devices: Counter[str] = Counter()
        self._counter = counter
        self._unknown: Counter[str] = Counter()
        self._simple: Counter[str] = Counter()
        self._inside = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self.devices[str(tensor.device)] += 1
        if not self._inside and isinstance(func, torch._ops.OpOverload):
            self._note(func)
        return out

    def _note(self, func: torch._ops.OpOverload) -> None:
        packet = func._overloadpacket
        if packet in self._counter.flop_registry or func.is_view or packet.__name__ in _MOVES:
            return
        if func.namespace == "prim" or func.namespace == "profiler":
            return
        known = self._simple if _SIMPLE.intersection(func.tags) else self._unknown
        known[str(packet)] += 1

    @contextmanager
    def operation(self, op: str, flops: int | None) -> Iterator[None]:
        """An operation of this package: counted by its own formula, not by what runs inside."""
        if self._inside == 0:
            if flops is None:
                self._unknown[op] += 1
            else:
                self.ours[op] += flops
        before = {name: dict(counts) for name, counts in self._counter.flop_counts.items()}
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            counts = self._counter.flop_counts
            for name in list(counts):
                counts[name].clear()
                counts[name].update(before.get(name, {}))

    def uncounted(self) -> dict[str, int]:
        """Calls by operator, the unknown before the elementwise, frequent before rare."""
        return dict(self._unknown.most_common()) | dict(self._simple.most_common())
