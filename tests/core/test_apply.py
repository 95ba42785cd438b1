from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from compress3g.core import Cut, Units, gated
from compress3g.errors import SiteError

NEURONS = Units("n", 6, writes=(Cut("0", "out"),), reads=(Cut("2", "in"),))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def by_hand(model, x, g):
    return model[2](model[1](model[0](x)) * g)


@given(rows=st.integers(1, 4), repeats=st.integers(1, 3), seed=st.integers(0, 99))
def test_rows_of_gates_repeat_over_a_larger_batch(rows, repeats, seed):
    generator = torch.Generator().manual_seed(seed)
    model, x = mlp(), torch.randn(rows * repeats, 5, 4, generator=generator)
    g = torch.rand(rows, 6, generator=generator)
    with gated(model, [NEURONS], {"n": g}):
        out = model(x)
    torch.testing.assert_close(out, by_hand(model, x, g.repeat(repeats, 1)[:, None]))


def test_two_groups_share_a_reader_at_their_offsets():
    model = nn.Sequential(nn.Linear(7, 2))
    a = Units("a", 2, reads=(Cut("0", "in", chunk=2, offset=1),))
    b = Units("b", 1, reads=(Cut("0", "in", offset=6),))
    x = torch.randn(3, 7)
    gates = {"a": torch.tensor([2.0, 3.0]), "b": torch.tensor([5.0])}
    with gated(model, [b, a], gates):
        out = model(x)
    m = torch.tensor([1.0, 2, 2, 3, 3, 1, 5])
    torch.testing.assert_close(out, model(x * m))


class AroundHooks(nn.Module):
    """A wrapper that goes past the hooks of what it wraps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.forward(x)


def test_a_callable_is_asked_once_per_forward_of_a_wrapper_that_goes_past_hooks():
    model, x, drawn = mlp(), torch.randn(2, 4), []

    def draw():
        drawn.append(torch.rand(6, requires_grad=True))
        return {"n": drawn[-1] * 2}

    outer = AroundHooks(model)
    with gated(model, [NEURONS], draw, called=outer):
        for _ in range(3):
            out = outer(x)
            out.sum().backward()
    assert len(drawn) == 3
    torch.testing.assert_close(out, by_hand(model, x, drawn[-1] * 2))


def test_a_callable_is_asked_once_per_forward():
    model, x, asked = mlp(), torch.randn(2, 4), []

    def draw():
        asked.append(len(asked))
        return {"n": torch.full((6,), float(len(asked)))}

    with gated(model, [NEURONS], draw):
        one, two = model(x), model(x)
    assert asked == [0, 1]
    torch.testing.assert_close(one, by_hand(model, x, 1.0))
    torch.testing.assert_close(two, by_hand(model, x, 2.0))


def test_recomputed_regions_see_the_gates_of_their_forward():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=False)

    units = [Units("n", 6, reads=(Cut("net.2", "in"),))]
    model, x, z = Checkpointed(), torch.randn(2, 4), torch.zeros(6, requires_grad=True)
    noise = torch.Generator().manual_seed(0)
    drawn = []

    def draw():
        drawn.append(torch.rand(6, generator=noise) + z)
        return {"n": drawn[-1]}

    with gated(model, units, draw):
        model(x).sum().backward()
    assert len(drawn) == 1
    again = torch.zeros(6, requires_grad=True)
    by_hand(model.net, x, drawn[0].detach() + again).sum().backward()
    torch.testing.assert_close(z.grad, again.grad)


@pytest.mark.parametrize("via", ["input", "weight"])
def test_nothing_is_left_behind_even_after_an_error(via):
    model, x = mlp(), torch.randn(2, 4)
    before, names = model(x), [n for n, _ in model.named_parameters()]
    wrong = {"n": torch.zeros(2, 6)}  # for a batch of two: five rows cannot repeat it
    with pytest.raises(SiteError), gated(model, [NEURONS], wrong, via=via):
        model(torch.randn(5, 4))
    assert torch.equal(model(x), before)
    assert [n for n, _ in model.named_parameters()] == names
    assert type(model[2]) is nn.Linear


def test_a_fused_kernel_is_found_out_and_gated_by_weight():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    units = [Units("heads", 2, reads=(Cut("out_proj", "in", chunk=4),))]
    x, g = torch.randn(2, 3, 8), torch.tensor([0.0, 2.0])
    with (
        pytest.raises(SiteError, match=r'out_proj was never called.*via="weight"'),
        gated(attention, units, {"heads": g}),
    ):
        attention(x, x, x)
    with gated(attention, units, {"heads": g}, via="weight"):
        out, _ = attention(x, x, x)
    with torch.no_grad():
        attention.out_proj.weight.mul_(g.repeat_interleave(4))
    torch.testing.assert_close(out, attention(x, x, x)[0])


def test_an_unused_block_of_gates_is_no_error_when_the_model_never_ran():
    with gated(mlp(), [NEURONS], {"n": torch.zeros(6)}):
        pass


def test_inputs_by_keyword_and_without_a_batch():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(3, 2, 1)

        def forward(self, x):
            return self.conv(input=x)

    model = Named()
    units = [Units("c", 3, reads=(Cut("conv", "in"),))]
    g = torch.tensor([1.0, 0.0, 3.0])
    for x in (torch.randn(2, 3, 5), torch.randn(3, 5)):
        with gated(model, units, {"c": g}):
            out = model(x)
        torch.testing.assert_close(out, model(x * g[:, None]))


class Pair(nn.Module):
    def forward(self, *, a, b):
        return a * 2, b * 3


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair = Pair()

    def forward(self, a, b):
        return self.pair(a=a, b=b)


def test_blocks_that_return_two_tensors_are_mixed_leaf_by_leaf():
    units = [Units("p", 1, bypass="pair", skip=lambda args, kwargs: (kwargs["a"], kwargs["b"]))]
    a, b = torch.randn(4, 2), torch.randn(4, 2)
    g = torch.tensor([[0.0], [1.0]])  # per sample, and the batch is twice as large
    with gated(Holder(), units, {"p": g}):
        first, second = Holder.forward(model := Holder(), a, b)  # outside: not the gated one
    torch.testing.assert_close((first, second), (a * 2, b * 3))
    with gated(model, units, {"p": g}):
        first, second = model(a, b)
    keep = g.repeat(2, 1)
    torch.testing.assert_close(first, a + keep * a)
    torch.testing.assert_close(second, b + keep * 2 * b)


def test_a_block_without_a_positional_input_needs_a_skip():
    with (
        pytest.raises(SiteError, match="give units 'p' a `skip`"),
        gated(model := Holder(), [Units("p", 1, bypass="pair")], {"p": torch.ones(1)}),
    ):
        model(torch.ones(1), torch.ones(1))


@pytest.mark.parametrize(
    ("gates", "batch", "via", "message"),
    [
        ({}, 2, "input", "have no gate"),
        ({"n": torch.ones(5)}, 2, "input", r"shape \(5,\), need \(6,\) or \(batch, 6\)"),
        ({"n": torch.ones(2, 2, 6)}, 2, "input", "need"),
        ({"n": torch.ones(3, 6)}, 4, "input", "2: gates for a batch of 3 meet an input of shape"),
        ({"n": torch.ones(2, 6)}, 2, "weight", "cannot hold gates per sample"),
    ],
)
def test_gates_of_the_wrong_shape_name_the_site(gates, batch, via, message):
    model = mlp()
    with pytest.raises(SiteError, match=message) as error, gated(model, [NEURONS], gates, via=via):
        model(torch.randn(batch, 4))
    assert "\n" not in str(error.value)
