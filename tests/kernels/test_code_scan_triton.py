from __future__ import annotations

import importlib
import importlib.util
import os

import pytest
import torch

from compress3g.errors import BackendError
from compress3g.kernels._pages import Pages
from compress3g.kernels.code_scan import quantise_table, scan, scan_batch
from compress3g.kernels.registry import use

NAME = "compress3g.kernels.code_scan.triton"
# Triton reads TRITON_INTERPRET when it is imported, hence the process of its own.
INTERPRETED = """
import torch
from compress3g.kernels._pages import Pages
from compress3g.kernels.code_scan import quantise_table, reference, triton

assert triton.usable() is None, triton.usable()
torch.manual_seed(0)
cases = ((24, 256, 70), (33, 300, 40), (1, 1, 3), (300, 40000, 33), (1024, 9, 5))
for tokens, rows, longest in cases:
    counts = torch.randint(0, longest + 1, (9,))
    counts[4] = 0
    offsets = torch.cat([torch.zeros(1), counts.cumsum(0)]).long()
    codes = torch.randint(0, rows, (int(offsets[-1]),))
    table = quantise_table(torch.randn(tokens, rows))
    for dtype in (torch.uint8, torch.uint16):
        if dtype == torch.uint8 and rows > 256:
            continue
        for some in (None, torch.tensor([8, 4, 0, 8]), torch.zeros(0, dtype=torch.long)):
            pages = Pages.of(offsets, some, codes=codes.to(dtype), rows=rows)
            expected = reference.scan_batch([table, table], pages)
            found = triton.scan_batch([table, table], pages)
            assert found.dtype == expected.dtype and torch.equal(found, expected)
wrong = Pages.of(offsets, None, codes=(codes + 1).to(torch.uint8), rows=rows - 1)
try:
    triton.scan(table, wrong)
except ValueError as error:
    assert "rows: codes and codebook" in str(error)
else:
    raise AssertionError("a code outside the table was accepted")
print("equal")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress3g.kernels.code_scan import triton as kernels

for kind, mask in (("*u8", 255), ("*i16", 65535)):
    values = {"BLOCK": 32, "COLUMNS": 32, "MASK": mask}
    names = kernels._scan.arg_names
    signature = dict(zip(names, ("*u8", kind, "*i64", "*i64", "*i32", "i32")))
    constants = {(names.index(name),): value for name, value in values.items()}
    source = ASTSource(kernels._scan, signature | dict.fromkeys(values, "constexpr"), constants)
    assert len(triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]) > 0
print("compiled")
"""


def test_interpreted_kernels_equal_the_reference(triton_script):
    triton_script(INTERPRETED, interpret=True, says="equal")


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there(triton_script):
    triton_script(COMPILED, interpret=False, says="compiled")


@pytest.mark.usefixtures("installed_triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton is interpreted")
@pytest.mark.filterwarnings("ignore")
def test_cpu_tensors_are_refused_without_the_interpreter():
    triton = importlib.import_module(NAME)
    assert triton.usable() == "no CUDA device is visible to torch"
    pages = Pages.of(torch.zeros(1).long(), None, codes=torch.zeros(0).byte(), rows=4)
    with pytest.raises(BackendError, match="CUDA tensors"):
        triton.scan(quantise_table(torch.zeros(3, 4)), pages)


@pytest.mark.gpu
@pytest.mark.usefixtures("installed_triton")
def test_gpu_kernels_equal_the_reference():
    g = torch.Generator().manual_seed(0)
    offsets = torch.arange(401) * 1030
    for rows, dtype in ((256, torch.uint8), (4096, torch.uint16)):
        codes = torch.randint(0, rows, (400 * 1030,), generator=g).to(dtype)
        similarity = torch.randn(24, rows, generator=g)
        table, there = quantise_table(similarity), quantise_table(similarity.cuda())
        assert torch.equal(table.bytes, there.bytes.cpu())
        expected = scan_batch([table], codes, offsets)[0]
        for backend in ("triton", "reference"):
            with use(code_scan=backend):
                found = scan(there, codes.cuda(), offsets.cuda())
            assert torch.equal(found.cpu(), expected)
