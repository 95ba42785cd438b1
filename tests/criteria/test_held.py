from __future__ import annotations

import pytest
import torch
from torch import nn

from compress3g.criteria import held


def test_nothing_learns_or_drops_meanwhile_and_all_is_as_before():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 3)).train()
    model[0].eval()
    model[2].bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    learnable = [p.requires_grad for p in model.parameters()]
    x = torch.randn(2, 3, requires_grad=True)

    def look():
        with held(model):
            assert torch.equal(model(x), model(x))
            model(x).sum().backward()
            assert x.grad is not None
            assert all(p.grad is None for p in model.parameters())
            raise KeyError("what went wrong inside")

    with pytest.raises(KeyError):
        look()
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learnable
