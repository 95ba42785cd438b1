from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compress3g.kernels
from compress3g.errors import BackendError
from compress3g.kernels import _library, registry

SOURCES = Path(compress3g.kernels.__file__).parent
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
GCC = shutil.which("gcc")
compiled = pytest.mark.skipif(_library.status() is not None, reason="CPU library not compiled")


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """An empty folder in which the library is looked for."""
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "_library.py"))
    _library._load.cache_clear()
    _library._bind.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    _library._load.cache_clear()
    _library._bind.cache_clear()


def test_a_missing_library_is_a_reason_and_not_an_error(elsewhere):
    assert str(_library.status()).startswith("not compiled")
    with pytest.raises(BackendError, match="not compiled"):
        _library.isa()
    with pytest.raises(BackendError, match="not compiled"), _library.use_isa("scalar"):
        pass
    for operation in registry.operations():
        plain_torch = "chunked" if operation == "selective_scan" else "reference"
        assert registry.active(operation, "cpu") == plain_torch


def test_a_damaged_library_is_a_reason(elsewhere):
    (elsewhere / f"_cpu{SUFFIX}").write_bytes(b"not a library")
    assert "does not load" in str(_library.status())


@pytest.mark.skipif(GCC is None, reason="no gcc")
@pytest.mark.parametrize(
    ("source", "reason"),
    [("int compress3g_abi(void) { return 99; }", "ABI 99"), ("int other;", "does not load")],
)
def test_a_library_of_another_version_is_a_reason(elsewhere, source, reason):
    (elsewhere / "old.c").write_text(source)
    target = elsewhere / f"_cpu{SUFFIX}"
    subprocess.run(
        [GCC, "-shared", "-fPIC", str(elsewhere / "old.c"), "-o", str(target)], check=True
    )
    assert reason in str(_library.status())


@compiled
def test_the_widest_set_runs_unless_a_narrower_one_is_named(monkeypatch):
    monkeypatch.delenv("COMPRESS3G_ISA", raising=False)
    widest = _library.isa()
    monkeypatch.setenv("COMPRESS3G_ISA", "scalar")
    assert _library.isa() == "scalar"
    with _library.use_isa(widest):
        assert _library.isa() == widest
    assert _library.isa() == "scalar"


@compiled
def test_unknown_sets_are_refused_and_leave_nothing_behind(monkeypatch):
    monkeypatch.delenv("COMPRESS3G_ISA", raising=False)
    before = _library.isa()
    with pytest.raises(BackendError, match="'sse9' cannot run here"), _library.use_isa("sse9"):
        pass
    assert _library.isa() == before
    monkeypatch.setenv("COMPRESS3G_ISA", "sse9")
    with pytest.raises(BackendError, match="scalar"):
        _library.isa()


def test_only_memory_that_c_can_walk_gets_an_address():
    for dtype in (torch.float32, torch.int64, torch.uint8):
        tensor = torch.zeros(3, 4, dtype=dtype)
        assert _library.address(tensor) == tensor.data_ptr()
    assert _library.address(None) is None
    with pytest.raises(BackendError, match="contiguous"):
        _library.address(torch.zeros(3, 4).T)
    with pytest.raises(BackendError, match="on meta"):
        _library.address(torch.zeros(3, device="meta"))
    for dtype in (torch.float64, torch.float16, torch.int32, torch.bool):
        with pytest.raises(BackendError, match="float32"):
            _library.address(torch.zeros(3, dtype=dtype))


SANITIZED = """
import sys
import torch
from compress3g.kernels import _library, code_scan, hamming, residual_scan
from compress3g.kernels.adam import SparseAdam
from compress3g.kernels.causal_conv import causal_conv1d
from compress3g.kernels.composite import composite, weights
from compress3g.kernels.hash_grid import Levels, encode
from compress3g.kernels.mlp import mlp
from compress3g.kernels.ray_march import march, pack_bits
from compress3g.kernels.selective_scan import selective_scan

_library.__file__ = sys.argv[1]
assert _library.status() is None, _library.status()
best = _library.isa()
torch.manual_seed(0)


def grids(n):
    for levels in (
        Levels.geometric(count=4, log2_size=8, coarsest=3, finest=1024),
        Levels.single(5),
        Levels.geometric(count=2, features=3, log2_size=6, coarsest=1, finest=40),
        Levels.geometric(count=2, log2_size=18, coarsest=60, finest=900),  # beyond the cache
    ):
        table = torch.randn(levels.entries, levels.features, requires_grad=True)
        x = torch.rand(n, 3)
        x[: n // 2] = (x[: n // 2] * 3).floor() / 2
        encode(table, x, levels).sum().backward()
        encode(table, x, levels, accumulate=True).sum().backward()
        SparseAdam([table]).step()


def networks(n):
    for widths in ([32, 64, 16], [31, 64, 64, 3], [1, 1], [128, 128], [64] * 9):
        weights = [torch.randn(b, a, requires_grad=True) for a, b in zip(widths, widths[1:])]
        x = torch.randn(n, -(-widths[0] // 16) * 16, requires_grad=True)
        mlp(x, weights).sum().backward()
        with torch.no_grad():
            mlp(x, weights)


def rays(n):
    for side, step in ((1, 0.3), (7, 0.01), (16, 0.02)):
        cells = torch.rand(side, side, side) < 0.4
        origin, direction = 3 * torch.rand(n, 3) - 1, torch.randn(n, 3)
        direction[: n // 3, 0] = 0
        found = march(origin, direction, torch.rand(n), pack_bits(cells), side=side, step=step)
        sigma = (10 * torch.rand(len(found))).requires_grad_()
        colour = torch.rand(len(found), 3, requires_grad=True)
        length = torch.full((n,), step)
        composite(sigma, colour, torch.rand(n, 3), length, found.offset).sum().backward()
        weights(sigma, length, found.offset)


def pages(n):
    offsets = torch.cat([torch.zeros(1), torch.randint(0, 40, (n,)).cumsum(0)]).long()
    total, some = int(offsets[-1]), torch.randperm(n)[: n // 2]
    norm = torch.rand(total).half()
    for tokens, rows, dims in ((24, 256, 16), (57, 300, 24), (1, 1, 8), (300, 70, 264)):
        codes = torch.randint(0, rows, (total,)).to(torch.uint8 if rows <= 256 else torch.uint16)
        query, similarity = torch.randn(tokens, dims), torch.randn(tokens, rows)
        table = code_scan.quantise_table(similarity)
        own = (codes, offsets, some)
        if rows < 256 and total:  # a code outside the table must be refused before it is an index
            codes = codes.clone()
            codes[total // 2] = 255
            refused(code_scan.scan, table, codes, offsets)
            refused(code_scan.scan_batch, [table] * 3, codes, offsets)
        code_scan.scan(table, *own)
        code_scan.scan_batch([table] * 5, *own)
        for bits in (1, 2, 4):
            packed = torch.randint(0, 256, (total, dims * bits // 8), dtype=torch.uint8)
            levels = torch.randn(2**bits)
            residual_scan.score_buckets(
                query, similarity, own[0], packed, levels, norm, offsets, some, bits=bits
            )
        words, scales = torch.randn(tokens, packed.shape[1] - 2, 256), torch.rand(2, 256)
        residual_scan.score_pq(similarity, words, own[0], packed, scales, offsets, some)
        odd, whole = torch.randn(total, dims - 3).half(), torch.ones(total, dims - 3).char()
        short = query[:, : dims - 3].contiguous()
        residual_scan.score_float(short, odd, offsets, some)
        residual_scan.score_float(short, whole, offsets, some, scale=norm.float())
        if n:
            residual_scan.similarities_float(short, odd, offsets, page=n - 1)
        signs = torch.randint(-(1 << 62), 1 << 62, (total, 3)).view(torch.uint64)
        bits = torch.randint(-(1 << 62), 1 << 62, (tokens, 3)).view(torch.uint64)
        hamming.scan(bits, signs, offsets, some)
        hamming.score(torch.randn(tokens, 192), signs, norm, offsets, some)
    wild = torch.tensor([0, 1 << 60, total])
    for bad in (torch.tensor([1 << 60]), torch.tensor([-(1 << 60)])):
        refused(code_scan.scan, table, own[0], offsets, bad)
        refused(hamming.scan, bits, signs, offsets, bad)
    refused(hamming.scan, bits, signs, wild)
    refused(residual_scan.score_float, short, odd, wild)


def scans(n):
    for b, e, states, groups in ((2, 35, 16, 1), (1, 6, 1, 2), (2, 20, 5, 2), (1, 17, 33, 1)):
        u, delta, z = (torch.randn(b, n, e, requires_grad=True) for _ in range(3))
        few = [torch.randn(b, groups, n, states, requires_grad=True) for _ in range(2)]
        a = (-torch.rand(e, states)).requires_grad_()
        skip, bias = torch.randn(e, requires_grad=True), torch.randn(e, requires_grad=True)
        start = torch.randn(b, e, states, requires_grad=True)
        places = torch.rand(b, 2 * n).argsort(1)[:, :n].sort(1).values
        for mode in ("current", "previous", "mean", "bias", "float"):
            gap = torch.rand(b, n, e) if mode == "float" else torch.randint(0, 9, (b, n))
            found = selective_scan(
                u, delta, a, *few, skip, z, delta_bias=bias, delta_softplus=True, gap=gap,
                gap_mode="hold" if mode == "float" else mode, reverse=mode == "mean",
                initial_state=start, return_ungated=True, return_last_state=True,
            )
            sum(t.sum() for t in found).backward()
        for taps, mode in ((1, "none"), (4, "zero"), (16, "hold")):
            weight = torch.randn(e, taps, requires_grad=True)
            for reverse in (False, True):
                causal_conv1d(
                    u, weight, bias, positions=places, mode=mode, reverse=reverse, activation="silu"
                ).sum().backward()


def refused(call, *arguments):
    try:
        call(*arguments)
    except ValueError:
        return
    raise AssertionError(f"{call.__name__} accepted what it must refuse")


for name in ("scalar", "avx2", "avx512", "icelake"):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with _library.use_isa(name):
            for n in (0, 1, 65, 1100, 3000):
                grids(n)
                networks(n)
                rays(n)
                if n <= 65:
                    pages(min(n, 24))
                    scans(n)
            scans(520)  # several blocks of steps
    if name == best:
        break
print("clean")
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # two minutes of compiling on an idle core
@pytest.mark.skipif(GCC is None, reason="no gcc")
@pytest.mark.skipif(sys.platform != "linux", reason="preloading the sanitizer needs Linux")
def test_no_kernel_touches_foreign_memory_or_undefined_behaviour(tmp_path):
    sources = [str(SOURCES / "_isa.c"), *map(str, sorted(SOURCES.glob("*/cpu.c")))]
    flags = ["-shared", "-fPIC", "-g", "-O1", "-std=gnu11", "-fno-math-errno", "-Wno-psabi"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    target = tmp_path / f"_cpu{SUFFIX}"
    subprocess.run([GCC, *flags, *checks, *sources, "-lm", "-o", str(target)], check=True)
    runtime = [
        subprocess.check_output([GCC, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(os.path.isabs(file) for file in runtime):
        pytest.skip("gcc has no sanitizer libraries")
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, str(tmp_path / "_library.py")],
        env={
            **os.environ,
            "LD_PRELOAD": ":".join(runtime),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.stdout.strip() == "clean", done.stderr[-4000:]
