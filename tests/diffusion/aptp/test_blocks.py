"""Bypassed blocks: gates of zero and models without the block are the same thing, on disk too."""

from __future__ import annotations

import functools

import pytest
import torch

from compress3g.core import gated, materialize
from compress3g.diffusion.blocks import blocks_of, kind_of_block, units_in_blocks
from compress3g.diffusion.standalone import passed_on

from ..tiny import ARCHITECTURES, FAMILIES, dense_copy


@pytest.mark.parametrize("name", FAMILIES)
def test_a_closed_gate_is_an_absent_block(name):
    case, model = ARCHITECTURES[name], dense_copy(name)
    units = units_in_blocks(model)
    blocks = [u for u in units if u.bypass is not None]
    assert blocks
    for block in blocks[:: max(1, len(blocks) // 3)]:
        keep = {u.name: torch.arange(u.size) for u in units} | {block.name: torch.arange(0)}
        gates = {u.name: torch.ones(u.size) for u in units} | {block.name: torch.zeros(1)}
        with torch.no_grad(), gated(model, units, gates):
            masked = case.run(model, 2)
        small = materialize(dense_copy(name), units, keep)
        with torch.no_grad():
            found, whole = case.run(small, 2), case.run(model, 2)
        # Float32 sums in another order: skip + 0 (out - skip) is not skip to the bit.
        assert torch.allclose(found, masked, atol=1e-5 * float(masked.abs().max()))
        assert not torch.allclose(found, whole, atol=1e-4 * float(whole.abs().max()))


def test_units_know_their_block_and_no_block_holds_another():
    model = dense_copy("UNet2DConditionModel SD")
    units = units_in_blocks(model)
    names = [str(u.bypass) for u in units if u.bypass is not None]
    assert not [(a, b) for a in names for b in names if b.startswith(f"{a}.")]
    for u in units:
        if u.inside is not None:
            assert u.name.startswith(u.inside.removesuffix("block"))
    assert any(u.inside for u in units)


def test_blocks_that_change_width_stay():
    model = dense_copy("UNet2DConditionModel SD")
    bypassed = {str(u.bypass) for u in blocks_of(model)}
    for name, module in model.named_modules():
        if type(module).__name__ == "ResnetBlock2D" and name.startswith("down_blocks"):
            assert (name in bypassed) == (module.in_channels == module.out_channels)


@pytest.mark.parametrize(
    ("kind", "args", "kwargs", "wanted"),
    [
        ("first", ("x", "t"), {}, "x"),
        ("tuple", ("x",), {"encoder_hidden_states": "t"}, ("x",)),
        ("pair", (), {"hidden_states": "x", "encoder_hidden_states": "t"}, ("t", "x")),
        ("pair", ("x", "t"), {}, ("t", "x")),
    ],
)
def test_what_stands_in_for_a_block(kind, args, kwargs, wanted):
    assert passed_on(kind, args, kwargs) == wanted


def test_the_way_up_keeps_what_flows_and_drops_what_the_way_down_left():
    x = torch.randn(2, 6, 3, 3)
    assert torch.equal(passed_on("channels 4", (x,), {}), x[:, :4])
    up = [u for u in blocks_of(dense_copy("UNet2DConditionModel SD")) if "up_blocks" in u.name]
    assert isinstance(up[0].skip, functools.partial)
    assert any(kind_of_block(u).startswith("channels") for u in up)
