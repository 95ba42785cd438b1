from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.nerf.distortion import (
    distort,
    distort_radius,
    fold,
    reach,
    undistort,
    undistort_radius,
)

# Strong barrel, pincushion with tangential parts, and an action camera with all four terms.
LENSES = [
    [0.0] * 6,
    [-0.3, 0.1, -0.02, 0.0, 0.0, 0.0],
    [0.1, -0.03, 0.0, 0.0, 2e-3, -3e-3],
    [-0.25, 0.08, -0.012, 6e-4, -1e-3, 5e-4],
]
FISHEYES = [
    [0.0] * 6,
    [-0.03, 4e-3, -1e-3, 1e-4, 0.0, 0.0],
    [0.06, -0.02, 4e-3, -3e-4, 0.0, 0.0],
]


def _coefficients(limit):
    """With the few digits a calibration has, so that none is tiny without being zero."""
    return st.integers(round(-1000 * limit), round(1000 * limit)).map(lambda i: i / 1000)


def _double(values):
    return torch.tensor(values, dtype=torch.float64)


def _reference(x, y, k):
    """OpenCV's radial-tangential model, term by term."""
    k1, k2, k3, k4, p1, p2 = k
    r = math.hypot(x, y)
    radial = 1 + k1 * r**2 + k2 * r**4 + k3 * r**6 + k4 * r**8
    return (
        x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
        y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
    )


def _turning_point(k):
    """The first radius at which r (1 + k1 r^2 + ...) stops growing, by looking."""
    r = np.linspace(0, 5, 100_001)
    value = r * (1 + k[0] * r**2 + k[1] * r**4 + k[2] * r**6 + k[3] * r**8)
    falling = np.diff(value) < 0
    return r[falling.argmax()] if falling.any() else math.inf


@pytest.mark.parametrize("lens", LENSES)
def test_distort_is_the_published_polynomial(lens):
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    expected = _double([_reference(x, y, lens) for x, y in points.tolist()])
    found = distort(points, _double(lens).expand(50, 6))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_undistort_inverts_distort(lens, dtype, tolerance):
    # Nine tenths of the way to the fold, at most 1.2: nearly 100 degrees of view.
    furthest = min(1.2, 0.9 * fold(_double(lens)))
    angle = torch.linspace(0, 6, 40, dtype=dtype)
    radius = torch.linspace(0, furthest, 40, dtype=dtype)[:, None]
    ideal = (radius[..., None] * torch.stack([angle.cos(), angle.sin()], -1)).reshape(-1, 2)
    k = torch.tensor(lens, dtype=dtype).expand(len(ideal), 6)
    limit = reach(k, fisheye=False)
    found = undistort(distort(ideal, k), k, limit)
    torch.testing.assert_close(found, ideal, rtol=0, atol=tolerance)


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[_coefficients(0.5)] * 4), st.floats(0, 1), st.booleans())
def test_every_radius_up_to_the_fold_comes_back(k, share, fisheye):
    lens = _double([[*k, 0.0, 0.0]])
    limit = reach(lens, fisheye=fisheye)
    seen = distort_radius(share * limit, lens)
    found = undistort_radius(seen, lens, limit)
    assert 0 <= float(found) <= float(limit)
    # In pixels of a lens with 1000 pixels per radian; at the fold the radius itself is not sharp.
    assert 1000 * (distort_radius(found, lens) - seen).abs().max() < 1e-8 * max(1, float(seen))
    slope = _slope(k, share * float(limit))
    if slope > 0.05:
        torch.testing.assert_close(found, share * limit, rtol=0, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[_coefficients(0.5)] * 4), st.floats(0, 1))
def test_in_single_precision_a_ten_thousandth_of_a_pixel_is_lost(k, share):
    lens = torch.tensor([[*k, 0.0, 0.0]])
    limit = reach(lens, fisheye=True)
    seen = distort_radius(share * limit, lens)
    found = undistort_radius(seen, lens, limit)
    # Terms of the polynomial cancel: what is lost is relative to the largest of them, and to what
    # the last bit of the angle moves.
    powers = share * float(limit) * (share * float(limit)) ** (2 * torch.arange(5.0))
    largest = float((powers * torch.tensor([1.0, *map(abs, k)])).max())
    slope = _slope(k, share * float(limit))
    error = 100 * (distort_radius(found, lens) - seen).abs().max()
    assert error < 1e-4 * max(1, largest, slope)


def test_a_strong_fisheye_near_its_fold_is_not_sent_to_the_other_side():
    # Newton's method alone, begun at the radius, starts beyond the fold and stays there.
    lens = _double([[-0.3, 0.0, 0.0, 0.0, 0.0, 0.0]])
    angle = 0.95 * fold(lens[0])
    seen = distort_radius(_double([angle]), lens)
    found = undistort_radius(seen, lens, reach(lens, fisheye=True))
    assert float(found) == pytest.approx(angle, abs=1e-9)


def test_what_no_lens_shows_gets_the_outermost_radius():
    lens = _double([[-0.3, 0.0, 0.0, 0.0, 0.0, 0.0]])
    limit = reach(lens, fisheye=True)
    far = 1.1 * distort_radius(limit, lens)
    assert float(undistort_radius(far, lens, limit)) == pytest.approx(float(limit), abs=1e-6)


@pytest.mark.parametrize("lens", FISHEYES)
def test_fisheye_angle_is_the_published_polynomial(lens):
    angle = torch.linspace(0, 1.5, 20).double()
    expected = [
        a * (1 + lens[0] * a**2 + lens[1] * a**4 + lens[2] * a**6 + lens[3] * a**8)
        for a in angle.tolist()
    ]
    found = distort_radius(angle, _double(lens).expand(20, 6))
    torch.testing.assert_close(found, _double(expected), rtol=0, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[_coefficients(0.5)] * 4))
def test_fold_is_where_the_polynomial_turns_back(k):
    found, expected = fold(_double([*k, 0.0, 0.0])), _turning_point(k)
    if expected == math.inf:
        # None within the radius looked at; a double root is no fold to the eye.
        assert found > 4.9 or _slope(k, found) == pytest.approx(0, abs=1e-6)
    else:
        # The looking is done in steps of 5e-5, and a flat turn is hard to see.
        assert found == pytest.approx(expected, abs=1e-3) or _slope(k, found) == pytest.approx(
            0, abs=1e-6
        )
        assert found <= expected + 1e-3


def _slope(k, r):
    return 1 + 3 * k[0] * r**2 + 5 * k[1] * r**4 + 7 * k[2] * r**6 + 9 * k[3] * r**8


def test_a_lens_without_a_fold_has_it_at_infinity():
    assert fold(torch.zeros(6)) == math.inf
    assert fold(_double([0.1, 0.01, 0, 0, 0, 0])) == math.inf


def test_nothing_is_not_finite_beyond_the_fold():
    lens = _double([-0.3, 0, 0, 0, 0, 0])
    far = _double([[5.0, -7.0], [100.0, 0.0], [0.0, 0.0]])
    lenses = lens.expand(3, 6)
    assert undistort(far, lenses, reach(lenses, fisheye=False)).isfinite().all()
    assert undistort_radius(far[:, 0].abs(), lenses, reach(lenses, fisheye=True)).isfinite().all()
