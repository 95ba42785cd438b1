"""Late interaction over decoded vectors of candidate pages: residual codecs and exact stores."""

from ._score import (
    score_buckets,
    score_float,
    score_pq,
    similarities_buckets,
    similarities_float,
    similarities_pq,
)

__all__ = [
    "score_buckets",
    "score_float",
    "score_pq",
    "similarities_buckets",
    "similarities_float",
    "similarities_pq",
]
