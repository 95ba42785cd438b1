"""That the tests check the shapes of every call, and that nothing else does."""

from __future__ import annotations

import subprocess
import sys

import jaxtyping
import pytest
import torch

from compress3g.kernels.composite import weights


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.zeros(4, 1), torch.ones(2), torch.tensor([0, 1, 4])),  # rank
        (torch.zeros(4), torch.ones(2), torch.tensor([0, 4])),  # r + 1 offsets
        (torch.zeros(4), torch.ones(2), torch.tensor([0.0, 1.0, 4.0])),  # kind
    ],
)
def test_calls_of_another_shape_or_kind_are_refused_here(wrong):
    with pytest.raises(jaxtyping.TypeCheckError, match="weights"):
        weights(*wrong)


def test_nothing_is_checked_and_no_checker_is_imported_outside_tests():
    script = (
        "import sys; sys.modules['beartype'] = None\n"
        "import compress3g.nerf.cli, compress3g.kernels.composite as c\n"
        "assert not hasattr(c.weights, '__wrapped__')\n"
        "print('typechecker' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False", done.stderr
