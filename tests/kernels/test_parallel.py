from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.kernels import _library
from compress3g.kernels._parallel import parallel_for
from compress3g.kernels.hash_grid import Levels, encode

FORKED = """
import os, signal, sys, torch
from compress3g.kernels.composite import weights
torch.set_num_threads(2)
sigma, length, offset = torch.ones(3000), torch.ones(1000), torch.arange(0, 3001, 3)
expected = weights(sigma, length, offset)[0]
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if torch.equal(weights(sigma, length, offset)[0], expected) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 500),
    threads=st.integers(1, 4),
    grain=st.integers(1, 100),
    piece=st.none() | st.integers(1, 60),
)
def test_every_index_is_covered_once(n, threads, grain, piece):
    count = np.zeros(n, int)

    def kernel(target, lo, hi):
        assert 0 <= lo < hi <= n
        target[lo:hi] += 1  # pieces are disjoint, so no lock

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.get_num_threads", lambda: threads)
        parallel_for(kernel, n, count, grain=grain, piece=piece)
    assert (count == 1).all()


def test_an_exception_of_a_piece_reaches_the_caller(two_threads):
    def kernel(lo, hi):
        if hi == 100:
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            parallel_for(kernel, 100, grain=1, piece=10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.skipif(_library.status() is not None, reason="CPU library not compiled")
def test_a_forked_child_runs_kernels_after_its_parent_did():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=60)


def test_after_an_exception_no_piece_is_still_running(two_threads):
    torch.set_num_threads(4)
    started, lock, caller = threading.Barrier(4), threading.Lock(), threading.get_ident()
    running, raisers = [0], ["the first piece on another thread than the caller's"]

    def kernel(lo, hi):
        with lock:
            running[0] += 1
            raises = bool(raisers and threading.get_ident() != caller and raisers.pop())
        started.wait(timeout=20)  # four pieces on four threads
        if not raises and threading.get_ident() != caller:
            time.sleep(0.2)
        with lock:
            running[0] -= 1
        if raises:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        parallel_for(kernel, 4, grain=1, piece=1)
    assert running[0] == 0


LEVELS = Levels.geometric(count=4, log2_size=9, coarsest=4, finest=64)
compiled_only = pytest.mark.skipif(_library.status() is not None, reason="CPU library not compiled")


def _problem():
    # Enough points for two threads of ours, too few for torch's own (OpenMP dies in a fork).
    g = torch.Generator().manual_seed(0)
    return torch.randn(LEVELS.entries, 2, generator=g), torch.rand(3000, 3, generator=g)


def _wait(child):
    """Exit code of a child process, or None when it hangs."""
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@compiled_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_children_forked_from_a_busy_parent_do_not_hang(two_threads):
    table, x = _problem()
    expected, stop = encode(table, x, LEVELS), threading.Event()

    def work():
        while not stop.is_set():
            encode(table, x, LEVELS)

    busy = threading.Thread(target=work)
    busy.start()
    codes = []
    try:
        for _ in range(4):
            child = os.fork()
            if child == 0:
                try:
                    os._exit(0 if torch.equal(encode(table, x, LEVELS), expected) else 1)
                finally:
                    os._exit(2)
            codes.append(_wait(child))
    finally:
        stop.set()
        busy.join()
    assert codes == [0] * 4


@compiled_only
def test_three_callers_at_once_get_their_own_results(two_threads):
    table, x = _problem()
    scales = (1.0, 2.0, 3.0)
    expected = [encode(table * s, x, LEVELS) for s in scales]
    right, start = [], threading.Barrier(3)

    def work(i):
        start.wait()
        for _ in range(20):
            leaf = (table * scales[i]).requires_grad_()
            out = encode(leaf, x, LEVELS)
            out.sum().backward()
            if torch.equal(out.detach(), expected[i]):
                right.append(i)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not any(caller.is_alive() for caller in callers)
    assert sorted(right) == [0] * 20 + [1] * 20 + [2] * 20
