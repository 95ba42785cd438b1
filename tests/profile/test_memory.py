from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from compress3g.profile import measure_memory


def _networks():
    yield "perceptron", nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)), (32, 16)
    yield (
        "convolutions",
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        (4, 3, 12, 12),
    )
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    yield "transformer", nn.TransformerEncoder(layer, 2), (3, 9, 16)


@pytest.mark.parametrize("optimiser", [None, torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(
    ("name", "model", "shape"), list(_networks()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_peak_is_that_of_torchs_tracker(name, model, shape, optimiser):
    """Within 1 %: an independent implementation inside torch, told of the same model and input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.distributed._tools.mem_tracker import MemTracker

        x = torch.randn(shape)
        steps = [] if optimiser is None else [optimiser(model.parameters(), lr=1e-3)]

        def step():
            model(x).square().mean().backward()
            for o in steps:
                o.step()
                o.zero_grad()

        step()
        ours = measure_memory(step, model=model)
        theirs = MemTracker()
        theirs.track_external(model, x, *steps)
        with theirs:
            step()
    expected = theirs.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert ours.peak == pytest.approx(expected, rel=0.01)


def test_peak_counts_what_is_alive_together():
    def run():
        for _ in range(3):
            a = torch.zeros(1000, dtype=torch.uint8)
            b = a + 1
            del a
            c = b + 1
            del b, c

    assert measure_memory(run).peak == 2000


def test_what_is_given_counts_from_the_start_though_noticed_late():
    given = torch.zeros(5000, dtype=torch.uint8)

    def run():
        a = torch.zeros(3000, dtype=torch.uint8)
        del a
        return given.sum(dtype=torch.uint8)  # the peak was before `given` was first seen

    memory = measure_memory(run)
    assert memory.peak == 8000
    assert memory.before == 5000


def test_views_and_in_place_work_cost_nothing():
    def run():
        a = torch.zeros(64, dtype=torch.uint8)
        a.view(8, 8).t()[2:].add_(1)
        return a.expand(3, 64)

    assert measure_memory(run).peak == 64


def test_resizing_is_followed():
    def run():
        a = torch.zeros(10, dtype=torch.uint8)
        a.resize_(1000)
        a.add_(1)

    assert measure_memory(run).peak == 1000


def test_sparse_tensors_count_indices_and_values():
    def run():
        index = torch.tensor([[0, 1, 2]])
        return torch.sparse_coo_tensor(index, torch.ones(3), (5,), check_invariants=False)

    assert measure_memory(run).peak >= 3 * 8 + 3 * 4


def test_saved_bytes_of_a_perceptron_by_hand():
    batch, widths = 32, (16, 64, 8)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(batch, widths[0])
    # x for the first weight; the ReLU's result, which the second layer shares; no parameter.
    expected = 4 * batch * (widths[0] + widths[1])
    assert measure_memory(lambda: model(x).sum().backward(), model=model).saved == expected
    assert measure_memory(lambda: model(x).sum().backward()).saved == expected


def test_nothing_is_saved_without_gradients():
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    with torch.no_grad():
        assert measure_memory(lambda: model(x).relu(), model=model).saved == 0


def test_checkpointing_saves_what_it_says():
    """The inputs of the blocks; what the backward pass computes again was not saved."""
    blocks = [
        nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 32), nn.Tanh())
        for _ in range(4)
    ]
    model, x = nn.Sequential(*blocks), torch.randn(64, 32)

    def whole():
        model(x).sum().backward()

    def segments():
        h = x
        for block in blocks:
            h = checkpoint(block, h, use_reentrant=False)
        h.sum().backward()

    row = 4 * 64
    # Without: x, and per block both tanh results (the second is the next block's input).
    assert measure_memory(whole, model=model).saved == row * (32 + 4 * (128 + 32))
    assert measure_memory(segments, model=model).saved == row * 4 * 32


def test_second_derivatives_survive_the_measurement():
    x = torch.tensor([1.5, -2.0], requires_grad=True)
    found = []

    def run():
        (first,) = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.sum(), x)[0])

    measure_memory(run)
    torch.testing.assert_close(found[0], 6 * x.detach())


def test_functional_gradients_are_measured_without_what_they_save():
    x, weights = torch.randn(4, 8), torch.ones(8, 8)
    gradient = torch.func.grad(lambda w: (x @ w).sum())
    memory = measure_memory(lambda: gradient(weights))
    assert memory.saved is None
    # x, the weights and their gradient.
    assert memory.peak >= x.nbytes + 2 * weights.nbytes


def test_an_error_of_the_function_passes():
    with pytest.raises(RuntimeError, match="shapes"):
        measure_memory(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


def test_gradients_are_the_same_under_measurement():
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Softmax(-1), nn.LayerNorm(6)), torch.randn(3, 6)
    model(x).pow(2).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    measure_memory(lambda: model(x).pow(2).sum().backward(), model=model)
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_the_graph_of_an_output_that_is_saved_is_freed():
    """A hook that kept the output itself would be a cycle: memory would grow with every call."""
    import gc
    import weakref

    gc.disable()
    try:
        alive = []

        def run():
            y = torch.ones(3, requires_grad=True).exp()
            alive.append(weakref.ref(y))

        measure_memory(run)
        assert alive[0]() is None
    finally:
        gc.enable()


def test_traffic_is_what_is_read_and_what_stays():
    a, table = torch.ones(100), torch.ones(1000, 4)
    rows = torch.arange(5)

    def run():
        chosen = table[rows]  # five rows of the table and their indices
        temporary = (a * 2).sum()
        return chosen + temporary

    expected = a.nbytes + 5 * 16 + rows.nbytes + 5 * 16
    assert measure_memory(run).traffic == expected


def test_our_kernels_saved_tensors_are_seen():
    from compress3g.kernels.mlp import mlp

    x = torch.randn(40, 16)
    weights = [torch.randn(32, 16, requires_grad=True), torch.randn(16, 32, requires_grad=True)]
    model = nn.Module()
    model.a, model.b = (nn.Parameter(w) for w in weights)
    saved = measure_memory(lambda: mlp(x, [model.a, model.b]).sum().backward(), model=model).saved
    assert saved == 4 * 40 * (16 + 32)


def test_resident_memory_shows_what_torch_does_not():
    def run():
        block = bytearray(200 << 20)
        block[::4096] = b"x" * len(block[::4096])

    memory = measure_memory(run)
    assert memory.peak == 0
    assert memory.resident > 100 << 20


@pytest.mark.gpu
def test_cuda_peak_is_the_allocators():
    model = nn.Linear(512, 512, device="cuda")
    x = torch.randn(256, 512, device="cuda")
    memory = measure_memory(lambda: model(x).sum().backward(), model=model)
    assert memory.peak == memory.allocated
    assert memory.reserved >= memory.allocated
