"""How much memory one call of a function needs: at its peak, and for its backward pass."""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from ._storage import distinct, storages, tensors_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one call; tensors that share memory count once."""

    peak: int  # most bytes alive at once: what the call makes, what it is given, the whole model
    before: int  # of these, what was there before the call
    # Most bytes kept for the backward pass at once, without parameters and what checkpointing
    # computes again; None under torch.func, which forbids the hooks that see them.
    saved: int | None
    traffic: int  # read from before and left behind: the least that must move
    resident: int  # growth of the process's peak resident memory, libraries' buffers too
    allocated: int | None = None  # CUDA: max_memory_allocated, which is then also `peak`
    reserved: int | None = None  # CUDA: max_memory_reserved


def measure_memory(fn: Callable[[], Any], *, model: nn.Module | None = None) -> Memory:
    """Memory of one call of `fn`; `model` counts as there before, whether the call reads it or not.

    On a CPU the peak is that of torch tensors, the same in every run; what operators allocate and
    free inside themselves shows in `resident` only. On CUDA the peak is the caching allocator's.

    >>> measure_memory(lambda: torch.zeros(256).add(1)).peak
    2048
    """
    try:
        return _measure(fn, model, _Saved(model))
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        return _measure(fn, model, None)


def _measure(fn: Callable[[], Any], model: nn.Module | None, saved: _Saved | None) -> Memory:
    device = _cuda_device()
    tracker = _Tracker()
    if model is not None:
        tracker.own([*model.parameters(), *model.buffers()])
    if device is not None:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    hooks = nullcontext() if saved is None else saved_tensors_hooks(saved.pack, saved.unpack)
    start = _reset_resident()
    with tracker, hooks:
        kept = fn()  # alive until everything is read: a result is part of what is left behind
    grown = _resident_peak() - start
    traffic = tracker.read + tracker.made
    del kept
    on_cuda = device is not None and tracker.cuda
    return Memory(
        peak=torch.cuda.max_memory_allocated(device) if on_cuda else tracker.peak,
        before=tracker.before,
        saved=None if saved is None else saved.peak,
        traffic=traffic,
        resident=max(0, grown),
        allocated=torch.cuda.max_memory_allocated(device) if on_cuda else None,
        reserved=torch.cuda.max_memory_reserved(device) if on_cuda else None,
    )


def _cuda_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_available() else None


# Of these only the rows that are asked for are read.
_LOOK_UPS = frozenset(("embedding", "gather", "index", "index_select"))


@dataclass(slots=True)
class _Entry:
    size: int
    ours: bool  # made during the call
    read: int = 0  # bytes that operators have asked for of what was there before


class _Tracker(TorchDispatchMode):
    """Follows the bytes of every storage from the operator that makes it to its release."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.before = 0  # bytes that existed when the call began
        self.made = 0  # bytes made by the call and still alive
        self.read = 0  # bytes of `before` that operators read
        self.cuda = False
        # By the identity of the C++ storage, which is free for another only after the finalizer.
        self._entries: dict[int, _Entry] = {}

    def own(self, tensors: list[Tensor]) -> None:
        """Counts tensors as there before the call."""
        for storage in distinct(tensors).values():
            self._add(storage, ours=False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
        for tensor in given:
            for storage in storages(tensor):
                self._see(storage, ours=False)
        out = func(*args, **kwargs)
        made = list(tensors_in(out))
        for tensor in made:
            for storage in storages(tensor):
                self._see(storage, ours=True)
        if not getattr(func, "is_view", False):
            self._reads(func, given, made)
        return out

    def _see(self, storage: torch.UntypedStorage, *, ours: bool) -> None:
        entry = self._entries.get(storage._cdata)
        if entry is None:
            self._add(storage, ours=ours)
        elif entry.size != storage.nbytes():  # resized in place
            self._grow(storage.nbytes() - entry.size, ours=entry.ours)
            entry.size = storage.nbytes()

    def _add(self, storage: torch.UntypedStorage, *, ours: bool) -> None:
        size, key = storage.nbytes(), storage._cdata
        self._entries[key] = _Entry(size, ours)
        self.cuda |= storage.device.type == "cuda"
        weakref.finalize(storage, self._release, key).atexit = False
        self._grow(size, ours=ours)
        if not ours:
            # It was there at every earlier peak too, unnoticed.
            self.peak = max(self.peak, self.live)

    def _grow(self, size: int, *, ours: bool) -> None:
        self.live += size
        if ours:
            self.made += size
            self.peak = max(self.peak, self.live)
        else:
            self.before += size
            self.peak += size

    def _release(self, key: int) -> None:
        entry = self._entries.pop(key)
        self.live -= entry.size
        if entry.ours:
            self.made -= entry.size

    def _reads(self, func: Any, given: list[Tensor], made: list[Tensor]) -> None:
        name = func._overloadpacket.__name__ if hasattr(func, "_overloadpacket") else ""
        for position, tensor in enumerate(given):
            for storage in storages(tensor):
                entry = self._entries[storage._cdata]
                if entry.ours or entry.read >= entry.size:
                    continue
                size = tensor.nbytes
                if position == 0 and name in _LOOK_UPS:
                    size = min(size, sum(t.nbytes for t in made))
                more = min(entry.size - entry.read, size)
                entry.read += more
                self.read += more


class _Kept:
    """What the graph holds instead of a saved tensor; gone when the graph lets go."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        # Without its history: an output that held itself would never be freed.
        self.tensor = tensor.detach()


class _Saved:
    """Bytes the autograd graph keeps, storages once, parameters excluded."""

    def __init__(self, model: nn.Module | None) -> None:
        self.live = self.peak = 0
        self._holders: dict[int, int] = {}
        # Kept alive, so that no storage of the call can take the identity of one.
        self._parameters = distinct(model.parameters()) if model is not None else {}

    def pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, nn.Parameter):
            for key, storage in distinct([tensor]).items():
                if key not in self._parameters:
                    self._hold(kept, key, storage.nbytes())
        return kept

    def unpack(self, kept: _Kept) -> Tensor:
        return kept.tensor

    def _hold(self, kept: _Kept, key: int, size: int) -> None:
        if not self._holders.get(key):
            self.live += size
            self.peak = max(self.peak, self.live)
        self._holders[key] = self._holders.get(key, 0) + 1
        weakref.finalize(kept, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.live -= size


def _reset_resident() -> int:
    """Forget the process's peak where the kernel allows it; the peak that counts from here."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _resident_peak()


def _resident_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
