"""By how many points one way is right more often than another, and how sure that is.

Both were trained from the same seeds and answered the same pictures. The gap at a seed and a
picture is a mean, what the picture adds, what the seed adds, and a rest: two crossed random
factors. The mean over S seeds and N pictures has the variance

    var(picture) / N + var(seed) / S + var(rest) / (S N)

whose parts the mean squares of a two-way analysis of variance estimate without bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def difference(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], further: Sequence[float] = ()
) -> tuple[float, float]:
    """Points by which a is better than b, and its standard error; one array of answers per seed.

    further: points of other seeds, whose answers picture by picture are not known any more; what
    pictures add is then estimated from those that are. Of a single seed, the rest counts as the
    pictures'. Where seeds scatter less than the rest explains, they are taken to add nothing.
    """
    gaps = 100 * np.stack([x.astype(float) - y.astype(float) for x, y in zip(a, b, strict=True)])
    seeds, pictures = gaps.shape
    points = np.append(gaps.mean(1), further)
    rest = _rest(gaps)
    of_pictures = max(gaps.mean(0).var(ddof=1) - rest / seeds, 0.0)
    of_seeds = points.var(ddof=1) if len(points) > 1 else 0.0  # of their means: with the rest / N
    variance = of_pictures / pictures + max(of_seeds, rest / pictures) / len(points)
    return float(points.mean()), float(np.sqrt(variance))


def _rest(gaps: np.ndarray) -> float:
    """Variance of what neither the seed nor the picture explains; 0 of one seed."""
    seeds, pictures = gaps.shape
    if seeds == 1:
        return 0.0
    left = gaps - gaps.mean(0) - gaps.mean(1, keepdims=True) + gaps.mean()
    return float((left**2).sum()) / ((seeds - 1) * (pictures - 1))
