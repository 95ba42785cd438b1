from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.kernels import _library
from compress3g.kernels._parallel import parallel_for

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
