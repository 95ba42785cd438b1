"""torchvision for CUDA beside torch for the CPU: transforms and models work all the same."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

SCRIPT = """
from compress3g._compat.torchvision_cpu import declare_operators
declared = declare_operators()
assert declare_operators() is declared
import torch
import torchvision
from torchvision.transforms.v2 import functional
picture = functional.resize(torch.full((3, 8, 8), 0.5), [4, 4])
assert torch.equal(picture, torch.full((3, 4, 4), 0.5))
if declared is not None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    try:
        torch.ops.torchvision.nms(boxes, torch.ones(1), 0.5)
    except NotImplementedError:
        print("detection raises")
from colpali_engine.models import ColIdefics3, ColPali, ColQwen2, ColQwen2_5
from transformers import BertModel
print("imported")
"""


def test_all_four_families_import_and_transforms_work():
    for name in ("torchvision", "colpali-engine"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported"


def test_nothing_is_declared_without_torchvision():
    script = (
        "import importlib.metadata as m\n"
        "real = m.distribution\n"
        "def absent(name):\n"
        "    if name == 'torchvision': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.distribution = absent\n"
        "from compress3g._compat.torchvision_cpu import declare_operators\n"
        "import sys\n"
        "assert declare_operators() is None and 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
