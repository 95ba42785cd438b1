from __future__ import annotations

import pytest
import torch
from torch import nn

from compress3g.core import Cut, Units, price
from compress3g.errors import CutError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


NEURONS = Units(
    "neurons", 6, writes=(Cut("0.up", "out"),), reads=(Cut("0.down", "in"),), inside="block"
)
BLOCK = Units("block", 1, bypass="0")


def test_a_neuron_costs_its_row_its_bias_and_its_column():
    model = nn.Sequential(Block()).half()
    (neurons, block) = price(model, [NEURONS, BLOCK], lambda m: m.float()(torch.zeros(3, 5, 4)))
    assert neurons.cost["params"] == 4 + 1 + 4
    assert neurons.cost["units"] == 1
    # Two floating-point operations per weight and token, 15 tokens.
    assert neurons.cost["flops"] == 2 * 15 * (4 + 4)
    # What the block costs beyond its neurons: norm, and the bias that no neuron owns.
    assert block.cost["params"] == 4 + 4 + 4
    assert block.cost["flops"] == 0


def test_bytes_follow_the_type_of_the_weights():
    wide, narrow = (
        price(nn.Sequential(Block()).to(t), [NEURONS, BLOCK])[0]
        for t in (torch.float32, torch.half)
    )
    assert (wide.cost["bytes"], narrow.cost["bytes"]) == (36, 18)


def test_a_convolution_is_charged_per_channel_and_pixel():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1))
    units = [Units("c", 8, writes=(Cut("0", "out"),), reads=(Cut("1", "in"),))]
    (channels,) = price(model, units, lambda m: m(torch.zeros(2, 3, 5, 5)))
    assert channels.cost["params"] == 3 * 9 + 1 + 2
    assert channels.cost["flops"] == 2 * 2 * 25 * (3 * 9 + 2)


def test_a_block_within_a_block_is_charged_once():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    outer = Units("outer", 1, bypass="0")
    inner = Units("inner", 1, bypass="0.1", inside="outer")
    priced = price(model, [outer, inner])
    assert [u.cost["params"] for u in priced] == [20, 20]


@pytest.mark.parametrize(
    ("model", "units", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 6)),
            [Units("a", 4, writes=(Cut("0", "out"),)), Units("b", 2, writes=(Cut("0", "out", 2),))],
            "0: units 'a' and 'b' both cut row 0 of axis 'out'",
        ),
        (
            nn.Sequential(nn.Linear(4, 6)),
            [Units("a", 4, writes=(Cut("0", "out", 2),))],
            "cut rows 0 to 7 of axis 'out', which has 6",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
            [Units("a", 4, writes=(Cut("0", "out"), Cut("1", "out")))],
            "1: a LayerNorm mixes the units",
        ),
        (
            nn.Sequential(nn.Conv2d(4, 8, 1), nn.GroupNorm(4, 8)),
            [Units("a", 8, writes=(Cut("0", "out"), Cut("1", "out")))],
            "split groups of 2",
        ),
        (
            nn.Sequential(nn.Conv2d(4, 8, 1, groups=2)),
            [Units("a", 8, writes=(Cut("0", "out"),))],
            "no exact cut of a Conv2d is known",
        ),
        (
            nn.Sequential(nn.Linear(2, 2)),
            [Units("a", 2, writes=(Cut("9", "out"),))],
            "9: Sequential",
        ),
        (nn.Sequential(nn.Linear(2, 2)), [Units("a", 1, bypass="x.y")], "x.y: Sequential has no"),
    ],
)
def test_cuts_that_would_not_be_exact_are_refused(model, units, message):
    with pytest.raises(CutError) as error:
        price(model, units)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
