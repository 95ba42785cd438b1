import pytest
import torch

from compress3g.mamba import Vim, VimConfig

SMALL = {"image": (20, 28), "patch": 4, "stride": 4, "channels": 3, "width": 24, "depth": 4}


@pytest.fixture
def vim():
    """A small Vim on a 5x7 grid whose tokens matter: projections are larger than at the start."""
    torch.manual_seed(0)
    model = Vim(VimConfig(**SMALL, classes=5))
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.in_proj.weight.mul_(12)
            layer.mixer.x_proj.weight.mul_(8)
            layer.mixer.x_proj_b.weight.mul_(8)
        model.pos_embed.mul_(20)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 20, 28, generator=torch.Generator().manual_seed(1))
