"""Procedural colour: palettes, noise and tilings, evaluated at arbitrary points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_HASH_PRIMES = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], dtype=np.uint64)


def linear(code: str) -> Array:
    """Linear RGB [3] of an sRGB hex colour such as `d9a441`."""
    srgb = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255.0
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def palette(codes: str) -> Array:
    """Linear RGB [n, 3] of space-separated sRGB hex colours."""
    return np.stack([linear(code) for code in codes.split()])


def mix(first: Array, second: Array, weight: Array) -> Array:
    """Colours [n, 3] blended from `first` (weight 0) to `second` (weight 1), weights [n]."""
    amount = np.clip(weight, 0.0, 1.0)[:, None]
    return first * (1.0 - amount) + second * amount


def paint_over(colours: Array, where: NDArray[np.bool_], code: str) -> Array:
    """Colours [n, 3] with one sRGB hex colour wherever the mask [n] holds."""
    return np.where(where[:, None], linear(code), colours)


def smoothstep(low: float, high: float, x: Array) -> Array:
    """Cubic ramp from 0 at `low` to 1 at `high`; also falls when `low` > `high`."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def hash_unit(cells: NDArray[np.int64], seed: int) -> Array:
    """Uniform numbers in [0, 1) [n] that depend only on the integer cells [n, k <= 3] and seed."""
    state = np.full(len(cells), seed * 0x27D4EB2F + 1, dtype=np.uint64)
    for axis in range(cells.shape[1]):
        state = (state ^ (cells[:, axis].astype(np.uint64) * _HASH_PRIMES[axis])) & 0xFFFFFFFF
        state = ((state ^ (state >> np.uint64(15))) * np.uint64(0x2C1B3C6D)) & 0xFFFFFFFF
        state = ((state ^ (state >> np.uint64(12))) * np.uint64(0x297A2D39)) & 0xFFFFFFFF
        state ^= state >> np.uint64(15)
    return state / 4294967296.0


def value_noise(points: Array, seed: int) -> Array:
    """Smooth noise in [0, 1] [n] at points [n, 3], one random value per integer lattice point."""
    base = np.floor(points).astype(np.int64)
    fraction = points - base
    weight = fraction * fraction * (3.0 - 2.0 * fraction)
    total = np.zeros(len(points))
    for corner in np.ndindex(2, 2, 2):
        side = np.array(corner)
        blend = np.prod(np.where(side == 1, weight, 1.0 - weight), axis=1)
        total += blend * hash_unit(base + side, seed)
    return total


def fractal_noise(points: Array, frequency: float, octaves: int, seed: int) -> Array:
    """Sum of octaves of value noise, halved amplitude each, scaled to [0, 1]."""
    amplitudes = 0.5 ** np.arange(octaves)
    layers = [
        amplitude * value_noise(points * frequency * 2.0**octave, seed + 101 * octave)
        for octave, amplitude in enumerate(amplitudes)
    ]
    return np.sum(layers, axis=0) / amplitudes.sum()


def voronoi(u: Array, v: Array, columns: int, seed: int) -> tuple[NDArray[np.int64], Array]:
    """Cell number [n] and distance to the nearest cell border [n] of a jittered-grid tiling.

    Cells are about one unit wide; `u` wraps around after `columns` units, so that a tiling in
    (angle, height) has no seam.
    """
    base = np.stack([np.floor(u), np.floor(v)], -1).astype(np.int64)
    distances, numbers = [], []
    for du in (-1, 0, 1):
        for dv in (-1, 0, 1):
            cell = base + np.array([du, dv])
            wrapped = np.stack([cell[:, 0] % columns, cell[:, 1]], -1)
            x = cell[:, 0] + 0.15 + 0.7 * hash_unit(wrapped, seed)
            y = cell[:, 1] + 0.15 + 0.7 * hash_unit(wrapped, seed + 1)
            distances.append(np.hypot(u - x, v - y))
            numbers.append(wrapped[:, 1] * columns + wrapped[:, 0])
    order = np.argsort(np.stack(distances), axis=0)[:2]
    nearest, second = np.take_along_axis(np.stack(distances), order, axis=0)
    number = np.take_along_axis(np.stack(numbers), order[:1], axis=0)[0]
    return number, 0.5 * (second - nearest)


def random_choice(numbers: NDArray[np.int64], colours: Array, seed: int) -> Array:
    """One of the colours [k, 3] for each number [n], at random but fixed by the seed."""
    pick = hash_unit(numbers[:, None], seed)
    return colours[np.minimum((pick * len(colours)).astype(np.int64), len(colours) - 1)]
