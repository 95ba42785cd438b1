from __future__ import annotations

import logging

import pytest
import torch

from compress3g.errors import BackendError
from compress3g.kernels import _library, registry


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch):
    monkeypatch.delenv("COMPRESS3G_BACKEND", raising=False)
    monkeypatch.delenv("COMPRESS3G_ISA", raising=False)


@pytest.mark.parametrize("op", registry.operations())
def test_every_operation_has_a_reference_everywhere(op):
    for device in ("cpu", "cuda"):
        found = {c.name: c.reason for c in registry.candidates(op, device)}
        assert found["reference"] is None
    assert registry.active(op, "mps") == "reference"
    first = next(c.name for c in registry.candidates(op, "cpu") if c.reason is None)
    assert registry.active(op, "cpu") == first
    assert registry.pick(op, torch.device("cpu")).__name__.endswith(f"{op}.{first}")


def test_the_inner_wish_wins_and_ends_with_its_block(monkeypatch):
    monkeypatch.setenv("COMPRESS3G_BACKEND", "mlp=cpu, hash_grid = x,adam=reference")
    assert registry.active("adam", "cpu") == "reference"
    before = registry.active("composite", "cpu")
    with registry.use(composite="reference", mlp="reference"):
        assert registry.active("composite", "cpu") == "reference"
        assert registry.active("mlp", "cpu") == "reference"
    assert registry.active("composite", "cpu") == before


def test_wishes_that_cannot_come_true_are_refused():
    with pytest.raises(BackendError, match="no operation 'nothing'"), registry.use(nothing="cpu"):
        pass
    with registry.use(mlp="triton"), pytest.raises(BackendError, match="no backend 'triton'"):
        registry.active("mlp", "cpu")
    with pytest.raises(BackendError, match="no backend 'abacus'"):
        registry.use_everywhere("abacus")
    assert registry.use_everywhere("auto") == {}
    assert set(registry.use_everywhere("triton")) == {
        "hash_grid",
        "mlp",
        "ray_march",
        "composite",
        "adam",
        "code_scan",
        "selective_scan",
        "causal_conv",
    }
    assert set(registry.use_everywhere("reference")) == set(registry.operations())


def test_a_missing_library_falls_back_and_says_why(monkeypatch):
    monkeypatch.setattr(_library, "_load", lambda: (None, "not compiled"))
    assert registry.candidates("adam", "cpu")[0] == registry.Candidate("cpu", "not compiled")
    assert registry.active("adam", "cpu") == "reference"
    with registry.use(adam="cpu"), pytest.raises(BackendError, match="not compiled"):
        registry.active("adam", "cpu")


@pytest.mark.skipif(_library.status() is not None, reason="CPU library not compiled")
def test_instruction_sets_are_forced_by_block_and_by_environment(monkeypatch):
    best = _library.isa()
    with _library.use_isa("scalar"):
        assert _library.isa() == "scalar"
    assert _library.isa() == best
    with pytest.raises(BackendError, match="cannot run here"), _library.use_isa("mmx"):
        pass
    monkeypatch.setenv("COMPRESS3G_ISA", "scalar")
    assert _library.isa() == "scalar"


def test_the_first_fallback_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(_library, "_load", lambda: (None, "not compiled"))
    monkeypatch.setattr(registry, "_told", set())
    with caplog.at_level(logging.INFO, logger=registry.__name__):
        for _ in range(3):
            assert registry.pick("adam", torch.device("cpu")).__name__.endswith("reference")
    assert [r.getMessage() for r in caplog.records] == ["adam: cpu -> reference (not compiled)"]


def test_forcing_ends_when_the_block_raises():
    before = registry.active("mlp", "cpu")
    with pytest.raises(ZeroDivisionError), registry.use(mlp="reference"):
        raise ZeroDivisionError
    assert registry.active("mlp", "cpu") == before
