from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import Legendre, leggauss

from compress3g.nerf.harmonics import harmonics


def _directions(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return v / v.norm(dim=1, keepdim=True)


def _textbook(direction: torch.Tensor) -> np.ndarray:
    """Real harmonics from associated Legendre functions with the Condon-Shortley phase.

    Y_lm = sqrt(2) N_lm P_l^m(cos theta) cos(m phi) for m > 0, with sin(|m| phi) for m < 0;
    P_l^m(z) = (-1)^m (1 - z^2)^(m/2) d^m P_l / dz^m.
    """
    x, y, z = direction.numpy().T
    phi = np.arctan2(y, x)
    columns = []
    for band in range(4):
        for m in range(-band, band + 1):
            k = abs(m)
            square = (2 * band + 1) / (4 * math.pi) * math.factorial(band - k)
            norm = math.sqrt(square / math.factorial(band + k) * (2 if m else 1))
            wave = np.cos(m * phi) if m >= 0 else np.sin(k * phi)
            legendre = (-1) ** k * (1 - z**2) ** (k / 2) * Legendre.basis(band).deriv(k)(z)
            columns.append(norm * legendre * wave)
    return np.stack(columns, -1)


def test_they_are_the_real_harmonics_of_four_bands():
    direction = _directions(500)
    # Both in double, polynomials of degree 3.
    np.testing.assert_allclose(harmonics(direction), _textbook(direction), atol=1e-13)


def test_single_precision_is_enough():
    direction = _directions(500, seed=1)
    found = harmonics(direction.float())
    assert found.dtype == torch.float32
    # Terms up to 5 in size, half a dozen roundings of 6e-8 each.
    np.testing.assert_allclose(found, _textbook(direction), atol=2e-6)


def test_they_are_orthonormal_on_the_sphere():
    # Gauss-Legendre in z and even angles in phi: exact for polynomials up to degree 6.
    z, weight = leggauss(8)
    phi = np.arange(16) * (2 * math.pi / 16)
    z, phi = (g.reshape(-1) for g in np.meshgrid(z, phi))
    ring = np.sqrt(1 - z**2)
    y = harmonics(torch.from_numpy(np.stack([ring * np.cos(phi), ring * np.sin(phi), z], -1)))
    area = torch.from_numpy(np.tile(weight, 16) * (2 * math.pi / 16))
    torch.testing.assert_close(
        y.T @ (area[:, None] * y), torch.eye(16).double(), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("band", range(4))
def test_the_power_of_a_band_is_the_same_in_every_direction(band):
    # Unsoeld: the sum of squares is (2 l + 1) / (4 pi), so no direction is favoured.
    part = harmonics(_directions(100, seed=2))[:, band**2 : (band + 1) ** 2]
    power = torch.full((100,), (2 * band + 1) / (4 * math.pi)).double()
    torch.testing.assert_close(part.square().sum(1), power, atol=1e-7, rtol=0)


def test_odd_bands_alone_change_sign_with_the_direction():
    direction = _directions(50, seed=3)
    sign = torch.tensor([(-1.0) ** band for band in range(4) for _ in range(2 * band + 1)]).double()
    torch.testing.assert_close(harmonics(-direction), sign * harmonics(direction))


def test_no_directions_have_no_harmonics():
    assert harmonics(torch.zeros(0, 3)).shape == (0, 16)
