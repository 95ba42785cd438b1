"""The shipped CIFAR-10 Vim. Its pictures are nobody's to ship, so a drawn one stands in.

Accuracy on real ones is what benchmarks/mamba_accuracy.py measures; here the weights must be those
that it measured, and say of the drawn picture what they said then.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from compress3g.cli.main import main
from compress3g.mamba import load_checkpoint

FOLDER = Path(__file__).parent.parent.parent / "pipelines" / "cifar10_vim"
FLOORS = {"dense": 71.5, "keep_0.8": 68.5, "keep_0.65": 65.0}  # % of the test split
LOGITS = {
    "dense": [-0.171, -1.683, 0.078, 2.433, -1.35, 0.924, 2.043, -0.901, -1.02, -1.264],
    "keep_0.8": [-0.687, -1.79, 0.321, 2.863, -1.226, 2.196, 0.538, -1.056, -1.247, -1.552],
    "keep_0.65": [-0.886, -1.585, 0.017, 2.665, -1.082, 2.297, 0.132, -0.362, -1.698, -1.14],
}


def drawn():
    """Three waves, normalised."""
    axis = torch.linspace(-1, 1, 32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([(3 * x + y).sin(), (4 * y - x).cos(), (5 * x * y).sin()])[None]


@pytest.mark.parametrize("name", FLOORS)
def test_weights_are_small_and_those_that_were_measured(name):
    found = load_checkpoint(FOLDER / name)
    assert (FOLDER / name / "model.safetensors").stat().st_size < 5e6
    assert (found.pruning is None) == (name == "dense")
    assert found.about["classes"][7] == "horse"
    assert found.about["test"] > FLOORS[name]
    with torch.no_grad():
        logits = found.model.eval()(drawn())[0]
    # Three decimals were noted, and kernels of other machines sum in another order.
    torch.testing.assert_close(logits, torch.tensor(LOGITS[name]), atol=5e-3, rtol=0)


def test_show_explains_a_picture(tmp_path):
    pixels = (drawn()[0].permute(1, 2, 0) * 127 + 128).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "waves.png")
    out = tmp_path / "kept.png"
    words = ["mamba", "show", str(tmp_path / "waves.png"), "--ckpt", str(FOLDER / "keep_0.65")]
    assert main([*words, "-o", str(out)]) == 0
    assert out.stat().st_size > 10_000
