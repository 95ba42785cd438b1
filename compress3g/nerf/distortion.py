"""How a lens bends light: the polynomial models of OpenCV, both ways.

Coordinates are those of the ideal image plane at distance one: x right, y down. Coefficients are
k1 k2 k3 k4 p1 p2 in the last dimension; all functions broadcast over the others.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_NEWTON_STEPS = 10  # quadratic convergence: usual lenses need four in float32
_BRACKET_STEPS = 60  # bisection alone reaches the last bit of a double in that many
_FAR = 10.0  # of the ideal image plane: 84 degrees off the axis
_FLAT = 0.05  # a Jacobian below this is at the fold of the polynomial, where no inverse exists


def distort(
    ideal: Float[Tensor, "*n 2"], coefficients: Float[Tensor, "*n 6"]
) -> Float[Tensor, "*n 2"]:
    """Where a perspective lens puts a point of the ideal image plane.

        x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8) + 2 p1 x y + p2 (r^2 + 2 x^2), y' alike

    The radial-tangential model of OpenCV's camera calibration.
    """
    x, y = ideal.unbind(-1)
    k1, k2, k3, k4, p1, p2 = coefficients.unbind(-1)
    s = x * x + y * y
    radial = 1 + s * (k1 + s * (k2 + s * (k3 + s * k4)))
    return torch.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (s + 2 * x * x),
            y * radial + 2 * p2 * x * y + p1 * (s + 2 * y * y),
        ],
        -1,
    )


def undistort(
    seen: Float[Tensor, "*n 2"],
    coefficients: Float[Tensor, "*n 6"],
    limit: Float[Tensor, "*n"],
) -> Float[Tensor, "*n 2"]:
    """The point of the ideal image plane that a perspective lens puts at `seen`.

    limit: largest radius that can be seen, `reach` of the coefficients. The radial part is inverted
    safely, then Newton's method adds the tangential one. Where nothing is mapped, the result is the
    nearest that is, at `limit`, but for the tangential part.
    """
    distance = seen.norm(dim=-1)
    radius = undistort_radius(distance, coefficients, limit)
    start: Tensor = seen * (radius / distance.clamp(min=1e-12))[..., None]
    if not bool(coefficients[..., 4:].any()):
        return start
    a, b = seen.unbind(-1)
    k1, k2, k3, k4, p1, p2 = coefficients.unbind(-1)
    x, y = start.unbind(-1)
    for _ in range(_NEWTON_STEPS):
        s = x * x + y * y
        radial = 1 + s * (k1 + s * (k2 + s * (k3 + s * k4)))
        slope = 2 * (k1 + s * (2 * k2 + s * (3 * k3 + s * 4 * k4)))  # d radial / d s, doubled
        error_x = x * radial + 2 * p1 * x * y + p2 * (s + 2 * x * x) - a
        error_y = y * radial + 2 * p2 * x * y + p1 * (s + 2 * y * y) - b
        xx = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x
        yy = radial + slope * y * y + 2 * p2 * x + 6 * p1 * y
        xy = slope * x * y + 2 * p1 * x + 2 * p2 * y
        determinant = (xx * yy - xy * xy).clamp(min=_FLAT)
        x = (x - (yy * error_x - xy * error_y) / determinant).clamp(-_FAR, _FAR)
        y = (y - (xx * error_y - xy * error_x) / determinant).clamp(-_FAR, _FAR)
    return torch.stack([x, y], -1)


def distort_radius(
    radius: Float[Tensor, "*n"], coefficients: Float[Tensor, "*n 6"]
) -> Float[Tensor, "*n"]:
    """Distance from the image centre at which a lens shows what is ideally at `radius`.

    r' = r (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8). A fisheye lens has the angle off its axis,
    in radians, in place of the ideal radius: OpenCV's fisheye model.
    """
    k1, k2, k3, k4, _, _ = coefficients.unbind(-1)
    s = radius * radius
    return radius * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))


def undistort_radius(
    seen: Float[Tensor, "*n"],
    coefficients: Float[Tensor, "*n 6"],
    limit: Float[Tensor, "*n"],
) -> Float[Tensor, "*n"]:
    """The radius in [0, limit], or for a fisheye lens the angle, that a lens shows at `seen`.

    limit: `reach` of the coefficients, below which `distort_radius` rises. Newton's method inside a
    bracket that bisection narrows: right up to the fold, where the slope is zero. Beyond the
    largest distance that is shown, the result is `limit`.
    """
    k1, k2, k3, k4, _, _ = coefficients.unbind(-1)
    low, high = torch.zeros_like(seen), limit.to(seen).expand_as(seen)
    radius, before = torch.minimum(seen, high), high
    for _ in range(_BRACKET_STEPS):
        error = distort_radius(radius, coefficients) - seen
        low, high = torch.where(error < 0, radius, low), torch.where(error < 0, high, radius)
        s = radius * radius
        slope = 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))
        step = radius - error / slope
        # Newton's step where it stays inside and converges, else the middle; false for NaN.
        good = (step > low) & (step < high) & ((step - radius).abs() < before / 2)
        after = torch.where(good, step, (low + high) / 2)
        before = (after - radius).abs()
        if not before.any():
            break
        radius = after
    return radius


def reach(coefficients: Float[Tensor, "n 6"], *, fisheye: bool) -> Float[Tensor, "n"]:
    """Largest radius (fisheye: angle) each lens can show: its fold, at most ten (pi)."""
    lenses = coefficients.detach().cpu().double().contiguous()
    far = np.minimum(_folds(lenses.numpy().tobytes()), math.pi if fisheye else _FAR)
    return torch.from_numpy(far).to(coefficients)


@functools.lru_cache(maxsize=64)
def _folds(lenses: bytes) -> np.ndarray:
    rows = torch.frombuffer(bytearray(lenses), dtype=torch.float64).view(-1, 6)
    known = {tuple(row): fold(torch.tensor(row)) for row in {tuple(r) for r in rows.tolist()}}
    return np.array([known[tuple(row)] for row in rows.tolist()])


def fold(coefficients: Float[Tensor, "6"]) -> float:
    """The radius (fisheye: angle) beyond which the polynomial turns back; infinite if never.

    Points further out would be mapped into the picture a second time although no lens shows them.
    It is the smallest positive root of
    d(r radial)/dr = 1 + 3 k1 r^2 + 5 k2 r^4 + 7 k3 r^6 + 9 k4 r^8.

    >>> round(fold(torch.tensor([-1 / 3, 0, 0, 0, 0, 0])), 4)
    1.0
    """
    k1, k2, k3, k4 = (float(k) for k in coefficients[:4])
    roots = np.roots([9 * k4, 7 * k3, 5 * k2, 3 * k1, 1.0])
    real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    return math.sqrt(real.min()) if len(real) else math.inf
