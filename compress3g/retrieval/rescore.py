"""Scores of a few pages from what a segment keeps of their vectors, better and better.

A scorer is a function (segment, rows of pages) -> score of each page, made for one query.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Int64

from ..kernels import hamming, residual_scan
from .encoding import Encoding
from .residual import BucketResidual, ProductResidual
from .segment import Segment

Scorer = Callable[[Segment, Int64[np.ndarray, "n"]], Float32[np.ndarray, "n"]]
