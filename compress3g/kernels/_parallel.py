"""The only thread pool of the package: C loops over a half-open range, split between threads."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    """A forked child has none of its parent's threads: start again on first use."""
    global _pool, _pool_size
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        _pool = ThreadPoolExecutor(count, thread_name_prefix="compress3g")
        _pool_size = count
    return _pool


def parallel_for(
    kernel: Callable[..., None], n: int, *args: object, grain: int = 4096, piece: int | None = None
) -> None:
    """Run `kernel(*args, lo, hi)` over [0, n) on `torch.get_num_threads()` threads.

    The range is cut into one piece per thread, or into pieces of `piece` that idle threads fetch in
    order. Runs inline when fewer than two pieces of `grain` exist. Pieces must write disjoint
    memory; then the result does not depend on who ran what. Exceptions propagate.
    """
    if n <= 0:
        return
    threads = torch.get_num_threads()
    size = piece if piece is not None else max(grain, -(-n // threads))
    pieces = -(-n // size)
    if threads == 1 or pieces == 1 or n < 2 * grain:
        kernel(*args, 0, n)
        return
    ticket = itertools.count()

    def work() -> None:
        while (i := next(ticket)) < pieces:
            kernel(*args, i * size, min(n, (i + 1) * size))

    pool = _workers(threads - 1)
    others: list[Future[None]] = [pool.submit(work) for _ in range(min(threads, pieces) - 1)]
    try:
        work()
    finally:
        # All of them, whatever happened: the caller may free the memory they write.
        errors = [other.exception() for other in others]
    for error in filter(None, errors):
        raise error
