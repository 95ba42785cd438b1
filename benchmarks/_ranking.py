"""MaxSim in torch, and how much of a ranking is left: nDCG, recall, intervals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
import torch
from ir_measures import nDCG

Vectors = Callable[[int, int], np.ndarray]  # rows a to b, decoded when asked for


def maxsim(
    query: np.ndarray, query_offsets: np.ndarray, rows: Vectors, offsets: np.ndarray,
    masks: Sequence[np.ndarray | None] = (None,),
) -> list[np.ndarray]:  # fmt: skip
    """Scores [queries, pages], once per mask of the rows that count. One pass over the rows."""
    right = torch.from_numpy(np.ascontiguousarray(query.astype(np.float32))).T.contiguous()
    best = [torch.empty(len(offsets) - 1, right.shape[1]) for _ in masks]
    chosen = [None if m is None else torch.from_numpy(m) for m in masks]
    step = 64
    for first in range(0, len(offsets) - 1, step):
        last = min(first + step, len(offsets) - 1)
        block = torch.from_numpy(rows(int(offsets[first]), int(offsets[last])))
        for page in range(first, last):
            a, b = int(offsets[page]), int(offsets[page + 1])
            inner = block[a - int(offsets[first]) : b - int(offsets[first])] @ right
            for out, mask in zip(best, chosen, strict=True):
                out[page] = (inner if mask is None else inner[mask[a:b]]).amax(0)
    return [_summed(out.numpy(), query_offsets) for out in best]


def maxsim_of(
    query: np.ndarray, query_offsets: np.ndarray, rows: Vectors, offsets: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Scores [queries, pages] of the wanted pairs [queries, pages], minus infinity elsewhere."""
    tokens = torch.from_numpy(query.astype(np.float32))
    lengths = np.diff(query_offsets)
    out = np.full(wanted.shape, -np.inf, np.float32)
    for page, (a, b) in enumerate(itertools.pairwise(offsets)):
        asking = np.flatnonzero(wanted[:, page])
        if len(asking) == 0:
            continue
        chosen = np.concatenate([np.arange(*query_offsets[q : q + 2]) for q in asking])
        best = (torch.from_numpy(rows(int(a), int(b))) @ tokens[torch.from_numpy(chosen)].T).amax(0)
        starts = np.concatenate(([0], np.cumsum(lengths[asking])[:-1]))
        out[asking, page] = np.add.reduceat(best.numpy(), starts)
    return out


def table_scores(
    table: np.ndarray, query_offsets: np.ndarray, codes: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Scores [queries, pages] where token t and code k have similarity table[t, k]."""
    columns = torch.from_numpy(np.ascontiguousarray(table.T))
    index = torch.from_numpy(codes.astype(np.int64))
    best = torch.empty(len(offsets) - 1, len(table), dtype=columns.dtype)
    for page in range(len(offsets) - 1):
        best[page] = columns[index[int(offsets[page]) : int(offsets[page + 1])]].amax(0)
    return _summed(best.numpy(), query_offsets)


def byte_table(table: np.ndarray, query_offsets: np.ndarray) -> np.ndarray:
    """Tables in 8 bits with one scale a query, as stage 1 of a search rounds them."""
    out = np.empty(table.shape, np.float32)
    for a, b in itertools.pairwise(query_offsets):
        low, high = table[a:b].min(), table[a:b].max()
        out[a:b] = np.rint((table[a:b] - low) * (255 / max(high - low, 1e-30)))
    return out


def _summed(best: np.ndarray, query_offsets: np.ndarray) -> np.ndarray:
    return np.add.reduceat(best, query_offsets[:-1], axis=1).T


def ranked(scores: np.ndarray) -> np.ndarray:
    """Pages [queries, pages], best first, ties to the lower page."""
    return np.argsort(-scores, axis=1, kind="stable")


def rescored(order: np.ndarray, depth: int, scores: np.ndarray) -> np.ndarray:
    """The first `depth` of every ranking in the order of other scores, the rest as they were."""
    head = np.sort(order[:, :depth], axis=1)
    again = np.argsort(-np.take_along_axis(scores, head, 1), axis=1, kind="stable")
    return np.concatenate((np.take_along_axis(head, again, 1), order[:, depth:]), 1)


def ndcg(order: np.ndarray, qrels: dict[int, dict[int, int]]) -> np.ndarray:
    """nDCG@10 of every query. The measure sees ranks, not scores: its ties are not ours."""
    judged = [
        ir_measures.Qrel(str(q), str(d), r) for q, row in qrels.items() for d, r in row.items()
    ]
    run = [
        ir_measures.ScoredDoc(str(q), str(d), -float(rank))
        for q, row in enumerate(order[:, :10])
        for rank, d in enumerate(row)
    ]
    found = {int(m.query_id): m.value for m in ir_measures.iter_calc([nDCG @ 10], judged, run)}
    return np.array([found[q] for q in range(len(order))])


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares rankings with the exact one on the same queries."""

    exact: np.ndarray
    qrels: dict[int, dict[int, int]]

    def row(self, orders: Iterable[np.ndarray], bytes_per_vector: float) -> dict[str, object]:
        """nDCG@10, its ratio to exact with a paired bootstrap interval, recall of the exact top 10.

        Several rankings (of several seeds) are averaged query by query.
        """
        orders = list(orders)
        base = ndcg(self.exact, self.qrels)
        value = np.mean([ndcg(order, self.qrels) for order in orders], 0)
        draws = np.random.default_rng(0).integers(0, len(base), (10_000, len(base)))
        ratios = value[draws].sum(1) / base[draws].sum(1)
        low, high = np.quantile(ratios, (0.025, 0.975))
        recall = {f"R@{n}": float(np.mean([self._recall(o, n) for o in orders])) for n in _DEPTHS}
        return {
            "bytes": bytes_per_vector,
            "nDCG@10": float(value.mean()),
            "percent": 100 * float(value.mean() / base.mean()),
            "interval": [100 * float(low), 100 * float(high)],
            **recall,
        }

    def _recall(self, order: np.ndarray, n: int) -> float:
        best = self.exact[:, :10, None] == order[:, None, :n]
        return float(best.any(2).mean())


_DEPTHS = (10, 50, 100, 200)
