from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from compress3g.errors import SceneError
from compress3g.nerf.metrics import ViewScore, composite_over, psnr, ssim, summary


def _pair(seed: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(height, width, 3, generator=g)
    return a, (a + 0.2 * torch.randn(height, width, 3, generator=g)).clamp(0, 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(11, 40), st.integers(11, 40))
def test_scores_equal_scikit_image(seed, height, width):
    a, b = _pair(seed, height, width)
    x, y = a.double().numpy(), b.double().numpy()
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1.0), rel=1e-12)
    expected = structural_similarity(
        x, y, channel_axis=2, data_range=1.0, gaussian_weights=True, use_sample_covariance=False
    )
    # Both in double; only the order of the sums differs.
    assert ssim(a, b) == pytest.approx(expected, abs=1e-12)


def test_ssim_of_a_single_window_is_the_formula():
    a, b = (t.double() for t in _pair(3, 11, 11))
    t = torch.arange(-5.0, 6.0, dtype=torch.float64)
    w = torch.exp(-(t[:, None] ** 2 + t[None] ** 2) / 4.5)[..., None]
    w = w / w.sum()
    ma, mb = (w * a).sum((0, 1)), (w * b).sum((0, 1))
    va, vb = (w * (a - ma) ** 2).sum((0, 1)), (w * (b - mb) ** 2).sum((0, 1))
    vab = (w * (a - ma) * (b - mb)).sum((0, 1))
    top = (2 * ma * mb + 1e-4) * (2 * vab + 9e-4)
    bottom = (ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)
    assert ssim(a.float(), b.float()) == pytest.approx(float((top / bottom).mean()), abs=1e-6)


def test_equal_images_score_best():
    a, _ = _pair(0, 20, 30)
    assert psnr(a, a.clone()) == math.inf
    assert ssim(a, a.clone()) == pytest.approx(1.0, abs=1e-12)


def test_a_constant_error_has_its_closed_form():
    a = torch.full((16, 16, 3), 0.5)
    assert psnr(a, a + 0.01) == pytest.approx(40.0, abs=1e-4)


def test_images_are_clipped_before_they_are_compared():
    a = torch.ones(12, 12, 3)
    assert psnr(a, a * 1.5) == math.inf
    assert ssim(a, a * 1.5) == pytest.approx(1.0, abs=1e-12)


def test_more_noise_scores_worse():
    a, _ = _pair(1, 24, 24)
    noise = torch.randn(24, 24, 3, generator=torch.Generator().manual_seed(2))
    pairs = [(psnr(a, a + s * noise), ssim(a, a + s * noise)) for s in (0.02, 0.1, 0.4)]
    assert pairs == sorted(pairs, reverse=True)


@pytest.mark.parametrize("score", [psnr, ssim])
def test_different_sizes_are_refused(score):
    # With shape checks switched on, they speak first.
    with pytest.raises((SceneError, TypeCheckError), match=r"16, ?17"):
        score(torch.zeros(16, 16, 3), torch.zeros(16, 17, 3))


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(SceneError, match="40x10"):
        ssim(torch.zeros(10, 40, 3), torch.zeros(10, 40, 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_alpha_composites_over_the_background(seed, height, width, background):
    g = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (height, width, 4), generator=g, dtype=torch.uint8)
    x = image.numpy().astype(np.float64) / 255
    expected = x[..., :3] * x[..., 3:] + background * (1 - x[..., 3:])
    # Two float32 roundings of values up to 1.
    np.testing.assert_allclose(composite_over(image, background).numpy(), expected, atol=3e-7)


def test_an_image_without_alpha_ignores_the_background():
    g = torch.Generator().manual_seed(4)
    image = torch.randint(0, 256, (5, 4, 3), generator=g, dtype=torch.uint8)
    assert torch.equal(composite_over(image, 0.0), image.float() / 255)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_are_refused(channels):
    with pytest.raises(SceneError, match=f"got {channels}"):
        composite_over(torch.zeros(4, 4, channels, dtype=torch.uint8))


def test_a_summary_averages_decibels_and_names_the_worst_view():
    scores = [ViewScore("a", 30.0, 0.9), ViewScore("b", 20.0, 0.95), ViewScore("c", 26.0, 0.7)]
    assert summary(scores) == {
        "psnr": pytest.approx(76 / 3),
        "psnr_median": 26.0,
        "psnr_min": 20.0,
        "psnr_max": 30.0,
        "ssim": pytest.approx(0.85),
        "ssim_median": 0.9,
        "ssim_min": 0.7,
        "ssim_max": 0.95,
        "worst": "b",
    }


def test_a_broken_view_is_the_worst_one():
    found = summary([ViewScore("a", 3.0, 0.1), ViewScore("broken", math.nan, math.nan)])
    assert found["worst"] == "broken"
    assert math.isnan(found["psnr"])


def test_no_views_are_refused():
    with pytest.raises(SceneError, match="no images"):
        summary([])
