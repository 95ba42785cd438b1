from __future__ import annotations

from contextlib import contextmanager

import pytest

from compress3g.kernels import cost


def _listener(log):
    @contextmanager
    def listen(op, flops):
        log.append(("in", op, flops))
        yield
        log.append(("out", op, flops))

    return listen


def test_nobody_listening_costs_no_formula():
    with cost.spend("mlp", lambda: pytest.fail("asked without a listener")):
        pass


def test_every_listener_is_told_around_the_operation():
    first, second = [], []
    with cost.observe(_listener(first)), cost.observe(_listener(second)):
        with cost.spend("mlp", lambda: 7):
            assert first == second == [("in", "mlp", 7)]
        with cost.spend("adam", None):
            pass
    assert first == second
    assert first[1:] == [("out", "mlp", 7), ("in", "adam", None), ("out", "adam", None)]


def test_an_error_in_the_operation_passes_and_ends_the_listening():
    log = []

    def fail():
        with cost.observe(_listener(log)), cost.spend("mlp", lambda: 1):
            raise RuntimeError("kernel")

    with pytest.raises(RuntimeError, match="kernel"):
        fail()
    with cost.spend("mlp", lambda: 2):
        pass
    assert log == [("in", "mlp", 1)]
