"""How close a rendered view is to the true one: PSNR and SSIM of images in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import SceneError

_WINDOW = 11  # pixels
_SIGMA = 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 with the data range L = 1


def psnr(a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"]) -> float:
    """Peak signal-to-noise ratio of two images, in dB; inf where they are equal.

    -10 log10 mean((a - b)^2), with both clipped to [0, 1] first.
    Raises SceneError when the sizes differ.

    >>> round(psnr(torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)), 3)
    20.0
    """
    _same_size(a, b)
    error = float((_clipped(a) - _clipped(b)).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"]) -> float:
    """Structural similarity of two images, at most 1, which equal images reach.

    Gaussian window 11x11 of sigma 1.5, data range 1, K = (0.01, 0.03), weighted moments without
    the n/(n-1) correction, only windows that lie inside the image, mean over places and channels
    (Wang, Bovik, Sheikh, Simoncelli 2004, section III-B and C). Both images are clipped to [0, 1].
    Raises SceneError when the sizes differ or are below 11x11.

    >>> ssim(torch.ones(16, 16, 3), torch.ones(16, 16, 3))
    1.0
    """
    _same_size(a, b)
    if min(a.shape[:2]) < _WINDOW:
        raise SceneError(
            f"SSIM needs images of {_WINDOW}x{_WINDOW} or more, got {a.shape[1]}x{a.shape[0]}"
        )
    x, y = _clipped(a).permute(2, 0, 1), _clipped(b).permute(2, 0, 1)
    mean_x, mean_y, xx, yy, xy = _blurred(torch.stack([x, y, x * x, y * y, x * y]))
    variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
    covariance = xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return float((luminance * structure).mean())


def composite_over(
    image: UInt8[Tensor, "h w c"], background: float = 1.0
) -> Float[Tensor, "h w 3"]:
    """Colours in [0, 1] of an image over a grey background, by its straight alpha if it has one.

    background: 0 black to 1 white, what the NeRF-synthetic scenes are evaluated on.
    Raises SceneError unless there are 3 or 4 channels.

    >>> composite_over(torch.tensor([[[255, 0, 0, 51]]], dtype=torch.uint8))
    tensor([[[1.0000, 0.8000, 0.8000]]])
    """
    if image.shape[2] not in (3, 4):
        raise SceneError(
            f"an image needs 3 or 4 channels, got {image.shape[2]}: convert it to RGBA"
        )
    unit = image.float() / 255
    rgb, alpha = unit[..., :3], unit[..., 3:]
    return rgb * alpha + background * (1 - alpha) if alpha.shape[2] else rgb


@dataclass(frozen=True, slots=True)
class ViewScore:
    """How well one view was rendered."""

    name: str
    psnr: float  # dB
    ssim: float


def summary(scores: Sequence[ViewScore]) -> dict[str, float | str]:
    """Mean, median, minimum and maximum over views, and the name of the worst view by PSNR.

    Keys: psnr, psnr_median, psnr_min, psnr_max, the same for ssim, and worst. The plain keys are
    means of the views' values, so psnr is a mean of dB, not the dB of a mean.
    Raises SceneError when there are no scores.

    >>> summary([ViewScore("r_0", 30.0, 0.9), ViewScore("r_1", 20.0, 0.8)])["worst"]
    'r_1'
    """
    if not scores:
        raise SceneError("no view was scored: the split has no images")
    statistics: dict[str, Callable[[list[float]], float]] = {
        "": lambda values: float(np.mean(values)),
        "_median": lambda values: float(np.median(values)),
        "_min": lambda values: float(np.min(values)),
        "_max": lambda values: float(np.max(values)),
    }
    columns = {"psnr": [s.psnr for s in scores], "ssim": [s.ssim for s in scores]}
    result: dict[str, float | str] = {
        name + suffix: statistic(values)
        for name, values in columns.items()
        for suffix, statistic in statistics.items()
    }
    result["worst"] = scores[int(np.argmin(columns["psnr"]))].name
    return result


def _same_size(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise SceneError(f"cannot compare images of sizes {tuple(a.shape)} and {tuple(b.shape)}")


def _clipped(image: Tensor) -> Tensor:
    # Double: the variances of SSIM are differences of nearly equal numbers.
    return image.detach().double().clamp(0, 1)


def _blurred(maps: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h2 w2"]:
    """Gaussian means over the windows that fit: one row filter, one column filter."""
    offset = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * _SIGMA**2))
    window = (window / window.sum()).reshape(1, 1, 1, _WINDOW)
    flat = maps.reshape(-1, 1, *maps.shape[2:])
    flat = F.conv2d(F.conv2d(flat, window), window.transpose(2, 3))
    return flat.reshape(*maps.shape[:2], *flat.shape[2:])
