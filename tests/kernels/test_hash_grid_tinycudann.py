"""The adapter against a stand-in with tiny-cuda-nn's documented and read semantics.

The stand-in knows positions, resolutions, level sizes, index wrap-around and the padding of the
batch; it does not know fp16 or the order of atomics.
"""

from __future__ import annotations

import itertools
import math
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import BackendError
from compress3g.kernels import registry
from compress3g.kernels.hash_grid import Levels, reference, tinycudann

GRANULARITY = 256
WORD = 0xFFFFFFFF


class StandIn(torch.nn.Module):
    """One grid encoding: vertices at scale * x + 0.5, scale = base_resolution growth^level - 1."""

    def __init__(self, n_input_dims, config, seed=1337, dtype=None):
        super().__init__()
        assert n_input_dims == 3
        assert dtype is torch.float32
        assert config["n_levels"] == 1
        assert config["n_features_per_level"] in (1, 2, 4, 8)
        self.dense = {"DenseGrid": True, "HashGrid": False}[config["otype"]]
        default = math.nan if self.dense else 2.0  # log(256 / base) / (1 - 1)
        growth = config.get("per_level_scale", default)
        self.scale = 2.0 ** (0 * math.log2(growth)) * config["base_resolution"] - 1
        self.resolution = math.ceil(self.scale) + 1
        self.features = config["n_features_per_level"]
        vertices = -(-(self.resolution**3) // 8) * 8
        self.size = vertices if self.dense else min(vertices, 1 << config["log2_hashmap_size"])
        g = torch.Generator().manual_seed(seed)
        self.params = torch.nn.Parameter(torch.rand(self.size * self.features, generator=g))
        self.highest = 0

    def _index(self, vertex):
        index = torch.zeros_like(vertex[..., 0])
        stride = 1
        if self.resolution <= 0x659:
            for axis in range(3):
                index = (index + vertex[..., axis] * stride) & WORD
                stride *= self.resolution
        else:
            stride = WORD
        if not self.dense and self.size < stride:
            primes = (1, 2654435761, 805459861)
            x, y, z = (vertex[..., a] * primes[a] & WORD for a in range(3))
            index = x ^ y ^ z
        return index % self.size

    def forward(self, x):
        assert x.dtype is torch.float32
        n = len(x)
        x = torch.nn.functional.pad(x, (0, 0, 0, -n % GRANULARITY))
        # A fused multiply-add rounds once: in double the product is exact.
        position = (x.double() * self.scale + 0.5).float()
        low = position.floor()
        part = position - low
        low = low.long() & WORD
        self.highest = max(self.highest, int(low.max()))
        out = torch.zeros(len(x), self.features)
        entries = self.params.view(-1, self.features)
        for step in itertools.product((0, 1), repeat=3):
            up = torch.tensor(step, dtype=torch.bool)
            weight = torch.where(up, part, 1 - part).prod(-1, keepdim=True)
            out = out + weight * entries[self._index((low + up.long()) & WORD)]
        return out[:n]


@pytest.fixture(scope="module")
def adapter():
    """The adapter with the stand-in in place of the library."""
    library = types.ModuleType("tinycudann")
    library.Encoding = StandIn
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tinycudann", library)
        tinycudann._library.cache_clear()
        tinycudann._encoders.cache_clear()
        yield tinycudann
    tinycudann._library.cache_clear()
    tinycudann._encoders.cache_clear()


def _compare(adapter, levels, x, seed=0):
    g = torch.Generator().manual_seed(seed)
    table = torch.rand(levels.entries, levels.features, generator=g) * 2 - 1
    out, expected = adapter.forward(table, x, levels), reference.forward(table, x, levels)
    assert not out.requires_grad
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    upstream = torch.randn(len(x), levels.width, generator=g)
    start = torch.randn(levels.entries, levels.features, generator=g)
    grad, expected = start.clone(), start.clone()
    adapter.backward(upstream, x, levels, grad)
    reference.backward(upstream, x, levels, expected)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(grad, expected, atol=1e-5 * scale, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 300),
    features=st.sampled_from([1, 2, 4, 8]),
    count=st.integers(1, 4),
    log2_size=st.integers(3, 12),
    coarsest=st.integers(1, 20),
    growth=st.integers(1, 150),
    seed=st.integers(0, 99),
)
def test_dense_and_hashed_levels_equal_the_reference(
    adapter, n, features, count, log2_size, coarsest, growth, seed
):
    levels = Levels.geometric(
        count=count,
        features=features,
        log2_size=log2_size,
        coarsest=coarsest,
        finest=coarsest * growth,
    )
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    _compare(adapter, levels, x, seed)


@pytest.mark.parametrize("cells", [1, 2, 3, 8, 11, 16, 17, 21])
def test_every_dense_vertex_is_found_exactly(adapter, cells):
    levels = Levels.single(cells + 1, features=2)
    axis = torch.arange(cells + 1) / cells
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1).view(-1, 3)
    # Only vertices whose position is an integer in float32: k / N * N need not be.
    exact = ((points * cells) == (points * cells).round()).all(-1)
    table = torch.randn(levels.entries, 2)
    assert torch.equal(adapter.forward(table, points, levels)[exact], table[exact])
    _compare(adapter, levels, points)


@pytest.mark.parametrize("finest", [16, 100, 1024, 3000])
def test_no_position_falls_below_the_first_vertex_or_past_the_last(adapter, finest):
    levels = Levels.geometric(count=3, log2_size=12, coarsest=9, finest=finest)
    values = (-1.0, 0.0, 2.0**-60, 2.0**-30, 2.0**-12, 0.5, 1 - 2.0**-24, 1.0, 2.0)
    x = torch.tensor(list(itertools.product(values, repeat=3)))
    _compare(adapter, levels, x)
    for encoder in tinycudann._encoders(levels, torch.device("cpu")):
        assert encoder.encoding.highest <= encoder.cells


def test_vertices_beyond_the_cube_do_not_leak_into_its_faces(adapter):
    levels = Levels.geometric(count=3, log2_size=12, coarsest=9, finest=200)
    table = torch.full((levels.entries, 2), 3.0)
    face = torch.rand(500, 3)
    face[:, 1] = 1.0
    out = adapter.forward(table, face, levels)
    torch.testing.assert_close(out, torch.full_like(out, 3.0), atol=1e-6, rtol=0)


def test_the_table_is_read_anew_on_every_call(adapter):
    levels = Levels.geometric(count=2, log2_size=8, coarsest=3, finest=30)
    x = torch.rand(20, 3)
    for value in (1.0, 2.0):
        out = adapter.forward(torch.full((levels.entries, 2), value), x, levels)
        torch.testing.assert_close(out, torch.full_like(out, value), atol=1e-6, rtol=0)


def test_other_feature_counts_are_refused(adapter):
    levels = Levels.single(4, features=3)
    with pytest.raises(BackendError, match="not 3"):
        adapter.forward(torch.zeros(levels.entries, 3), torch.rand(2, 3), levels)


def test_the_registry_prefers_it_on_cuda_when_it_imports(adapter):
    assert registry.active("hash_grid", "cuda") == "tinycudann"


class _Broken:
    """An import hook that fails as a build for another GPU does."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "tinycudann":
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError("Could not find compatible tinycudann extension for compute capability 86."),
        ImportError("libcudart.so.12: cannot open shared object file"),
    ],
)
def test_the_reason_is_the_original_message(monkeypatch, error):
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Broken(error), *sys.meta_path])
    tinycudann._library.cache_clear()
    try:
        assert tinycudann.usable() == str(error)
    finally:
        tinycudann._library.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(tinycudann.usable() is not None, reason="needs tiny-cuda-nn")
@pytest.mark.parametrize("features", [2, 4])
@pytest.mark.parametrize("log2_size", [12, 19])
def test_the_library_equals_the_reference_on_a_gpu(features, log2_size):
    tinycudann._encoders.cache_clear()
    levels = Levels.geometric(count=8, features=features, log2_size=log2_size, finest=512)
    g = torch.Generator("cuda").manual_seed(0)
    table = torch.rand(levels.entries, features, generator=g, device="cuda") * 2 - 1
    x = torch.rand(10_001, 3, generator=g, device="cuda")
    out, expected = (m.forward(table, x, levels) for m in (tinycudann, reference))
    # Positions of both conventions differ by a rounding of float32, times 512 cells.
    torch.testing.assert_close(out, expected, atol=2e-4, rtol=0)
    upstream = torch.randn(len(x), levels.width, generator=g, device="cuda")
    grads = []
    for module in (tinycudann, reference):
        grads.append(torch.zeros_like(table))
        module.backward(upstream, x, levels, grads[-1])
    error = (grads[0] - grads[1]).norm() / grads[1].norm()
    assert error < 1e-3
