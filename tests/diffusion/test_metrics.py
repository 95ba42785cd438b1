"""Image distances against scikit-image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from compress3g.diffusion.metrics import psnr, relative_error, ssim


@settings(max_examples=10, deadline=None)
@given(st.integers(7, 20), st.integers(7, 20), st.integers(0, 1 << 16))
def test_ssim_and_psnr_are_those_of_scikit_image(height, width, seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(2, 3, height, width, generator=g)
    b = (a + 0.2 * torch.randn(a.shape, generator=g)).clamp(0, 1)
    for i in range(2):
        x, y = a[i].double().numpy(), b[i].double().numpy()
        theirs = structural_similarity(x, y, data_range=1.0, channel_axis=0)
        assert math.isclose(float(ssim(a, b)[i]), theirs, abs_tol=1e-5)
        theirs = peak_signal_noise_ratio(x, y, data_range=1.0)
        assert math.isclose(float(psnr(a, b)[i]), theirs, rel_tol=1e-5)


@pytest.mark.parametrize("size", [3, 5])
def test_images_smaller_than_the_window_are_one_window(size):
    g = torch.Generator().manual_seed(size)
    a, b = torch.rand(2, 1, 1, size, size, generator=g)
    x, y = a[0].double().numpy(), b[0].double().numpy()
    theirs = structural_similarity(x, y, win_size=size, data_range=1.0, channel_axis=0)
    assert math.isclose(float(ssim(a, b)), theirs, abs_tol=1e-5)


def test_equal_images_are_as_close_as_can_be():
    a = torch.rand(1, 3, 8, 8)
    assert float(ssim(a, a)) == 1
    assert math.isinf(float(psnr(a, a)))
    assert relative_error(a, a) == 0
