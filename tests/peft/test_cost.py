"""A budget of milliseconds, on a machine that gets slower while it is measured."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from compress3g.core import Cut, Units
from compress3g.peft.cost import bare, cost_of


class Slow(nn.Linear):
    """Its forward pass takes a millisecond an input, times `load`."""

    load = 1.0

    def forward(self, x):
        time.sleep(1e-3 * x.shape[-1] * Slow.load)
        return super().forward(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(2, 20), Slow(20, 2)

    def forward(self, x):
        return self.down(self.up(x))


UNITS = [Units("neurons", 20, (Cut("up", "out"),), (Cut("down", "in"),))]


def test_milliseconds_of_two_decisions_compare_though_the_load_changed_between_them(monkeypatch):
    monkeypatch.setattr(Slow, "load", 1.0)
    cost = cost_of(Block(), UNITS, "ms", lambda: [{"x": torch.ones(1, 2)}])
    whole = cost({"neurons": torch.arange(20)})
    monkeypatch.setattr(Slow, "load", 3.0)
    assert cost({"neurons": torch.arange(10)}) / whole == pytest.approx(0.5, rel=0.2)


def test_what_is_measured_shares_memory_and_cuts_leave_the_model_as_it_is():
    model = Block()
    copy = bare(model)
    assert copy.up.weight.data_ptr() == model.up.weight.data_ptr()
    cost_of(model, UNITS, "ms", lambda: [{"x": torch.ones(1, 2)}])({"neurons": torch.arange(5)})
    assert model.up.weight.shape == (20, 2)
    assert all(p.requires_grad for p in model.parameters())
