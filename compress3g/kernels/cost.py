"""What an operation costs, told to whoever asks: its loops run in C, where no counter looks in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

# Given the operation and its floating-point operations (None: it has no formula), an observer
# returns a context in which the operation then runs, so that torch code inside, in a reference
# backend, is not counted a second time.
Observer = Callable[[str, int | None], AbstractContextManager[None]]

# Read by every thread: the backward pass of CUDA tensors runs in one of its own.
_observers: tuple[Observer, ...] = ()
_NOBODY = nullcontext()


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Tells `observer` about every operation of this package that runs inside the block."""
    global _observers
    before = _observers
    _observers = (*before, observer)
    try:
        yield
    finally:
        _observers = before


def spend(op: str, flops: Callable[[], int] | None) -> AbstractContextManager[None]:
    """The context an operation runs in; `flops` is only called when somebody listens."""
    if not _observers:
        return _NOBODY
    return _told(op, None if flops is None else flops())


@contextmanager
def _told(op: str, flops: int | None) -> Iterator[None]:
    with ExitStack() as stack:
        for observer in _observers:
            stack.enter_context(observer(op, flops))
        yield
