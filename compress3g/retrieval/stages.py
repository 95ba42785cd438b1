"""What a stage of a search does to some pages of a view: which pass, and with what score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32, Int64, Shaped

from ..kernels import code_scan
from .rescore import Scorer, coded_scorer, stored_scorer
from .view import View


def top(
    scores: Shaped[np.ndarray, "n"], ids: Int64[np.ndarray, "n"], n: int
) -> Int64[np.ndarray, "k"]:
    """Positions of the n highest scores, best first, ties by lower id.

    >>> top(np.array([1, 3, 3, 2]), np.array([0, 9, 5, 7]), 2)
    array([2, 1])
    """
    if n < len(scores):
        cut = np.partition(scores, len(scores) - n)[len(scores) - n]
        above, equal = np.flatnonzero(scores > cut), np.flatnonzero(scores == cut)
        room = n - len(above)
        if room < len(equal):
            equal = equal[np.argpartition(ids[equal], room - 1)[:room]]
        chosen = np.concatenate((above, equal))
    else:
        chosen = np.arange(len(scores))
    return chosen[np.lexsort((ids[chosen], -scores[chosen]))]


def positions_to_score(
    view: View, allowed: Int64[np.ndarray, "n"] | None
) -> Int64[np.ndarray, "k"] | None:
    """Positions of the living pages among `allowed`, of all living pages for None; None for all."""
    if allowed is not None:
        return view.positions_of(allowed)
    return None if view.live is None else np.flatnonzero(view.live)


def scan(
    view: View, tables: Sequence[code_scan.ScanTable], positions: Int64[np.ndarray, "n"] | None
) -> list[Int32[np.ndarray, "pages"]]:
    """Stage 1: integer scores of all positions, or of the given ones in their order, by query."""
    parts = []
    if positions is None:
        for segment in view.segments:
            unique, bounds = segment.arrays["unique"], segment.arrays["unique_offsets"]
            parts.append(_scan_segment(tables, unique, bounds, None))
    else:
        for segment, rows, _ in view.split(positions):
            unique, bounds = segment.arrays["unique"], segment.arrays["unique_offsets"]
            parts.append(_scan_segment(tables, unique, bounds, rows))
    if not parts:
        return [np.zeros(0, np.int32) for _ in tables]
    return list(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))


def _scan_segment(
    tables: Sequence[code_scan.ScanTable],
    unique: Shaped[np.ndarray, "u"],
    bounds: Int64[np.ndarray, "ends"],
    rows: Int64[np.ndarray, "n"] | None,
) -> Shaped[np.ndarray, "b n"]:
    if len(tables) == 1:
        return code_scan.scan(tables[0], unique, bounds, rows).numpy()[None]
    scores: Shaped[np.ndarray, "b n"] = code_scan.scan_batch(tables, unique, bounds, rows).numpy()
    return scores


def later_stages(
    view: View, query: Float32[np.ndarray, "t d"], similarity: Float32[np.ndarray, "t k"], n2: int
) -> list[tuple[str, Scorer, int]]:
    """Stages 2 and, where originals are kept, 3: name, scorer, pages it passes on."""
    assert view.encoding is not None
    scorer = coded_scorer(view.encoding, query, similarity)
    if view.encoding.config.store == "none":
        return [("rescore", scorer, n2)]
    return [("rescore", scorer, n2), ("exact", stored_scorer(query), n2)]


def rescore(
    view: View, scorer: Scorer, positions: Int64[np.ndarray, "n"]
) -> Float32[np.ndarray, "n"]:
    """The scores of some positions."""
    scores = np.empty(len(positions), np.float32)
    for segment, rows, which in view.split(positions):
        scores[which] = scorer(segment, rows)
    return scores


def exact_stage(
    view: View, query: Float32[np.ndarray, "t d"], positions: Int64[np.ndarray, "n"], k: int
) -> tuple[Int64[np.ndarray, "k"], Float32[np.ndarray, "k"]]:
    """Numbers and scores of the best k of these pages, by the vectors the index keeps."""
    scores = rescore(view, stored_scorer(query), positions)
    order = top(scores, view.page_ids[positions], k)
    return view.page_ids[positions[order]], scores[order]
