"""How far a pruned pipeline's images are from the dense one's."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def ssim(
    a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], *, window: int = 7
) -> Float[Tensor, "n"]:
    """Structural similarity of images in [0, 1]: uniform window, unbiased variances.

    Wang et al. 2004 with the constants (0.01, 0.03), over windows that lie inside the image, mean
    over channels: what scikit-image computes by default. A smaller image is one
    window high or wide.
    """
    a, b = a.double(), b.double()
    window = min(window, a.shape[-1], a.shape[-2])
    n = window * window

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1)

    ma, mb = mean(a), mean(b)
    unbias = n / max(1, n - 1)
    va, vb = ((mean(x * x) - m * m) * unbias for x, m in ((a, ma), (b, mb)))
    both = (mean(a * b) - ma * mb) * unbias
    c1, c2 = 0.01**2, 0.03**2
    s = (2 * ma * mb + c1) * (2 * both + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return s.mean((1, 2, 3)).float()


def psnr(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio in dB of images in [0, 1]; infinite for equal ones.

    >>> import torch
    >>> psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.1)).round()
    tensor([20.])
    """
    return -10 * (a - b).double().square().mean((1, 2, 3)).log10().float()


def relative_error(made: Float[Tensor, "n ..."], wanted: Float[Tensor, "n ..."]) -> float:
    """Mean squared error over the mean square of what was wanted."""
    gap = (made - wanted).double().square().mean()
    return float(gap / wanted.double().square().mean().clamp_min(1e-30))
