from __future__ import annotations

import sys

import pytest

from compress3g.kernels import registry

OPERATIONS = registry.use_everywhere("triton")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_modules_import_without_triton_and_say_so(monkeypatch, operation):
    names = (f"compress3g.kernels.{operation}.triton", "compress3g.kernels._triton")
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    reasons = {c.name: c.reason for c in registry.candidates(operation, "cuda")}
    assert str(reasons["triton"]).startswith("triton does not import")
    assert reasons["reference"] is None
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
