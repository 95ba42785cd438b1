from __future__ import annotations

import itertools
from contextlib import nullcontext

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress3g.kernels.adam import SparseAdam
from compress3g.kernels.composite import composite
from compress3g.kernels.hash_grid import Levels, encode
from compress3g.kernels.mlp import mlp
from compress3g.kernels.registry import use
from compress3g.profile import count_flops, size_of

small = st.integers(1, 6)


@given(batch=small, inputs=small, outputs=small, learn_input=st.booleans())
@settings(max_examples=25, deadline=None)
def test_linear_counts_two_per_multiply_add(batch, inputs, outputs, learn_input):
    layer, x = nn.Linear(inputs, outputs), torch.randn(batch, inputs, requires_grad=learn_input)
    forward = 2 * batch * inputs * outputs
    assert count_flops(lambda: layer(x)).total == forward
    whole = count_flops(lambda: layer(x).sum().backward()).total
    assert whole == forward * (3 if learn_input else 2)


@given(
    batch=small,
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_convolution_counts_each_weight_at_each_output(
    batch, groups, width, kernel, stride, padding
):
    layer = nn.Conv2d(
        groups * width, 2 * groups, kernel, stride=stride, padding=padding, groups=groups
    )
    x = torch.randn(batch, groups * width, 7, 6)
    out = layer(x)
    expected = 2 * batch * layer.weight.numel() * out.shape[2] * out.shape[3]
    assert count_flops(lambda: layer(x)).total == expected


heads, length = st.integers(1, 4), st.integers(1, 9)


@given(
    batch=small,
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    queries=length,
    keys=length,
    width=st.integers(1, 8),
    causal=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_cpu_attention_counts_as_torch_counts_it_on_cuda(
    batch, groups, shared, queries, keys, width, causal
):
    """Scores and weighted sum, with the query's heads, a causal mask counted whole.

    Backward: the scores again and four products of the same size.
    """
    q = torch.randn(batch, groups * shared, queries, width, requires_grad=True)
    k = torch.randn(batch, groups, keys, width, requires_grad=True)
    v = torch.randn(batch, groups, keys, width, requires_grad=True)
    product = 2 * batch * groups * shared * queries * keys * width

    def attend():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    assert count_flops(attend).total == 2 * product
    counted = count_flops(lambda: attend().sum().backward())
    assert counted.total == (2 + 5) * product
    assert not any("attention" in name for name in counted.uncounted)


def test_attention_formulas_equal_torchs_own():
    """Of the fused CUDA kernels, whose formulas need shapes only."""
    from torch.utils.flop_counter import flop_registry

    from compress3g.profile.formulas import attention, attention_backward

    q, kv = (2, 4, 16, 8), (2, 4, 12, 8)
    aten = torch.ops.aten
    forward = flop_registry[aten._scaled_dot_product_flash_attention]
    backward = flop_registry[aten._scaled_dot_product_flash_attention_backward]
    q_, kv_ = torch.empty(q), torch.empty(kv)
    assert attention(q, kv, kv) == forward(q_, kv_, kv_)
    assert attention_backward(q, kv, kv) == backward(q_, q_, kv_, kv_)


@pytest.mark.parametrize("mask", ["none", "float", "dropout"])
def test_every_path_of_attention_counts_the_same(mask):
    """Dropout sends a CPU to separate products, which torch counts without us: 2 forward."""
    q = torch.randn(2, 3, 8, 4)
    options = {"none": {}, "float": {"attn_mask": torch.randn(8, 8)}, "dropout": {"dropout_p": 0.5}}
    counted = count_flops(lambda: F.scaled_dot_product_attention(q, q, q, **options[mask]))
    assert counted.total == 2 * 2 * 2 * 3 * 8 * 8 * 4


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_a_transformer_counts_the_same_in_training_and_inference(mode):
    """In inference torch runs one fused operator without a formula of its own."""
    width, hidden, batch, tokens = 16, 24, 2, 5
    layer = nn.TransformerEncoderLayer(width, 2, hidden, dropout=0.0, batch_first=True)
    layer.eval()
    x = torch.randn(batch, tokens, width)
    rows = batch * tokens
    expected = 2 * rows * (4 * width * width + 2 * width * hidden) + 4 * batch * tokens**2 * width
    with mode():
        assert count_flops(lambda: layer(x)).total == expected


def test_fast_multi_head_attention_counts_its_projections():
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(3, 7, 16)
    expected = 2 * 3 * 7 * 4 * 16 * 16 + 4 * 3 * 7 * 7 * 16
    with torch.inference_mode():
        counted = count_flops(lambda: layer(x, x, x, need_weights=False))
    assert counted.total == expected
    assert "aten._native_multi_head_attention" in counted.by_op


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: torch.mv(torch.ones(3, 4), torch.ones(4)), 24),
        (lambda: torch.addmv(torch.ones(3), torch.ones(3, 4), torch.ones(4)), 24),
        (lambda: torch.dot(torch.ones(5), torch.ones(5)), 10),
        (lambda: torch.addbmm(torch.ones(2, 4), torch.ones(5, 2, 3), torch.ones(5, 3, 4)), 240),
        (lambda: torch.einsum("bij,bjk->bik", torch.ones(2, 3, 4), torch.ones(2, 4, 5)), 240),
    ],
)
def test_products_torch_passes_over_are_counted(run, expected):
    assert count_flops(run).total == expected


backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


@backends
@given(points=st.integers(1, 40), count=st.integers(1, 4), features=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_hash_grid_counts_eight_corners_in_any_backend(backend, points, count, features):
    levels = Levels.geometric(count=count, features=features, log2_size=6, coarsest=2, finest=16)
    table = torch.randn(levels.entries, features, requires_grad=True)
    x = torch.rand(points, 3)
    once = 2 * 8 * points * count * features
    with use(hash_grid=backend):
        assert count_flops(lambda: encode(table, x, levels)).total == once
        with torch.no_grad():
            assert count_flops(lambda: encode(table, x, levels)).total == once
        counted = count_flops(lambda: encode(table, x, levels).sum().backward())
    assert counted.by_op == {"hash_grid": once, "hash_grid.backward": once}


@backends
@pytest.mark.parametrize("learn_input", [True, False])
def test_mlp_counts_layers_without_their_padding_in_any_backend(backend, learn_input):
    n, widths = 33, (7, 20, 24, 3)
    weights = [torch.randn(b, a, requires_grad=True) for a, b in itertools.pairwise(widths)]
    x = torch.randn(n, 16, requires_grad=learn_input)
    layers = [2 * n * w.numel() for w in weights]
    with use(mlp=backend):
        counted = count_flops(lambda: mlp(x, weights).sum().backward())
    back = 2 * sum(layers) - (0 if learn_input else layers[0])
    assert counted.by_op == {"mlp": sum(layers), "mlp.backward": back}


def test_what_has_no_formula_is_named_most_obscure_first():
    cell, x = nn.LSTM(4, 4), torch.randn(3, 2, 4)
    sigma, colour = torch.rand(4), torch.rand(4, 3)
    offset = torch.tensor([0, 2, 4])
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimiser = SparseAdam([p])

    def run():
        with torch.no_grad():
            cell(x).__getitem__(0).relu()
        composite(sigma, colour, torch.zeros(2, 3), torch.ones(2), offset)
        optimiser.step()

    names = list(count_flops(run).uncounted)
    assert {"composite", "adam", "aten.relu"} <= set(names)
    assert any("rnn" in name or "lstm" in name for name in names[:4])
    assert names.index("aten.relu") > names.index("composite")


def test_moving_numbers_is_not_called_uncounted_work():
    x = torch.randn(4, 6)
    counted = count_flops(lambda: torch.cat([x.t(), x.reshape(6, 4)])[1:].clone().contiguous())
    assert counted.uncounted == {}
    assert counted.total == 0


def test_counting_does_not_change_the_result_or_the_gradients():
    layer, x = nn.Linear(5, 3), torch.randn(4, 5)
    layer(x).pow(2).sum().backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    count_flops(lambda: layer(x).pow(2).sum().backward())
    assert all(torch.equal(p.grad, e) for p, e in zip(layer.parameters(), expected, strict=True))


def test_nothing_is_told_after_the_count_ends():
    from compress3g.kernels import cost

    with pytest.raises(ZeroDivisionError):
        count_flops(lambda: 1 / 0)
    assert cost.spend("mlp", lambda: pytest.fail("nobody asked")) is cost.spend("mlp", None)


def test_products_are_those_of_torchs_counter():
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 6, 5))
    x = torch.randn(3, 2, 8)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert count_flops(lambda: model(x).sum().backward()).total == counter.get_total_flops()


def test_tied_weights_count_once_and_buffers_apart():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight
            self.norm = nn.BatchNorm1d(4).half()
            self.register_buffer("scratch", torch.zeros(7), persistent=False)

    size = size_of(Tied())
    assert size.params == 40 + 8
    assert size.bytes == 40 * 4 + 8 * 2
    assert size.buffers == 4 + 4 + 1 + 7
    assert size.buffer_bytes == 8 * 2 + 8 + 7 * 4  # the count of batches is an int64
    assert size.state_bytes == size.bytes + 8 * 2 + 8


def test_views_of_one_memory_count_once_and_slices_apart():
    flat = torch.zeros(12)
    model = nn.Module()
    model.a, model.b = nn.Parameter(flat[:6]), nn.Parameter(flat[6:])
    model.c = nn.Parameter(flat[:6])
    assert size_of(model).params == 12


def test_state_bytes_are_those_of_a_file(tmp_path):
    from safetensors.torch import save_model

    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    save_model(model, str(tmp_path / "m.safetensors"))
    data = (tmp_path / "m.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert size_of(model).state_bytes == len(data) - header


def test_a_model_without_memory_counts_by_shape():
    with torch.device("meta"):
        model = nn.Linear(3, 5)
    assert size_of(model).params == 20
