"""Dropout before adapters: the library's in law, and cheaper to keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.peft.dropout import LightDropout, lighten_dropout
from compress3g.peft.units import base_of, lora_layers

from .test_light import LOOK, batch, classifier, trainer


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.floats(0.01, 0.9), st.integers(0, 9))
def test_what_stays_is_scaled_and_its_gradient_alike(shape, p, seed):
    torch.manual_seed(seed)
    x = torch.rand(shape).add_(0.5).requires_grad_(True)
    out = LightDropout(p).train()(x)
    kept = out != 0
    assert torch.allclose(out[kept], x[kept] / (1 - p))
    out.sum().backward()
    assert torch.allclose(x.grad, kept / (1 - p))


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_the_share_that_goes_is_p_in_every_place_of_a_draw(p):
    torch.manual_seed(0)
    count = 1 << 18
    gone = (LightDropout(p).train()(torch.ones(count)) == 0).double().view(-1, 4)
    # four numbers share a draw: each place must have the law, and no two go together
    error = 5 * (p * (1 - p) / len(gone)) ** 0.5
    assert (gone.mean(0) - p).abs().max() < error
    assert (torch.corrcoef(gone.T) - torch.eye(4)).abs().max() < 5 / len(gone) ** 0.5


def test_nothing_goes_in_evaluation_and_seeds_repeat():
    x, layer = torch.rand(3, 5), LightDropout(0.5)
    assert layer.eval()(x) is x
    layer.train()
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)


def test_a_mask_keeps_a_byte_for_each_number():
    kept = []

    def pack(t):
        kept.append(t.untyped_storage().nbytes())
        return t

    x = torch.rand(8, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        LightDropout(0.1).train()(x)
    assert kept == [x.numel()]


def test_a_run_has_it_before_every_adapter_and_its_state_is_stock(tmp_path):
    model = classifier()
    names = set(model.state_dict())
    lighten_dropout(model)
    assert set(model.state_dict()) == names
    run = trainer(classifier(), tmp_path, steps=LOOK + 1)
    run.train()
    layers = lora_layers(base_of(run.model)).values()
    assert all(type(m.lora_dropout["default"]) is LightDropout for m in layers)
    assert run.model.eval()(**batch()).logits.isfinite().all()
