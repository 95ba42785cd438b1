"""How a lens bends light: the polynomial models of OpenCV, both ways.

Coordinates are those of the ideal image plane at distance one: x right, y down. Coefficients are
k1 k2 k3 k4 p1 p2 in the last dimension; all functions broadcast over the others.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_NEWTON_STEPS = 10  # quadratic convergence: usual lenses need four in float32
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
    seen: Float[Tensor, "*n 2"], coefficients: Float[Tensor, "*n 6"]
) -> Float[Tensor, "*n 2"]:
    """The point of the ideal image plane that a perspective lens puts at `seen`.

    Inverts `distort` by Newton's method. Outside the picture's fold, where nothing is mapped, the
    result is finite and arbitrary.
    """
    a, b = seen.unbind(-1)
    k1, k2, k3, k4, p1, p2 = coefficients.unbind(-1)
    x, y = a, b
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
        x = (x - (yy * error_x - xy * error_y) / determinant).clamp(-10, 10)
        y = (y - (xx * error_y - xy * error_x) / determinant).clamp(-10, 10)
    return torch.stack([x, y], -1)


def distort_angle(
    angle: Float[Tensor, "*n"], coefficients: Float[Tensor, "*n 6"]
) -> Float[Tensor, "*n"]:
    """Distance from the image centre at which a fisheye lens shows light `angle` off its axis.

    r = a (1 + k1 a^2 + k2 a^4 + k3 a^6 + k4 a^8), a in radians: OpenCV's fisheye model.
    """
    k1, k2, k3, k4, _, _ = coefficients.unbind(-1)
    s = angle * angle
    return angle * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))


def undistort_angle(
    radius: Float[Tensor, "*n"], coefficients: Float[Tensor, "*n 6"]
) -> Float[Tensor, "*n"]:
    """The angle off the axis, in [0, pi], that a fisheye lens shows at `radius`; Newton again."""
    k1, k2, k3, k4, _, _ = coefficients.unbind(-1)
    angle = radius.clamp(0, math.pi)
    for _ in range(_NEWTON_STEPS):
        s = angle * angle
        slope = 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))
        error = distort_angle(angle, coefficients) - radius
        angle = (angle - error / slope.clamp(min=_FLAT)).clamp(0, math.pi)
    return angle


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
