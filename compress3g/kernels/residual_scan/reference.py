"""Decoding and scoring in plain torch: the truth for tests, on any device, and the fallback."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigError
from .._pages import Pages
from ._decoded import Decoded, Pairs, Products, Rows

_CHUNK = 1 << 22  # values held at once


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def _inner(decoded: Decoded, vector: Int[Tensor, "n"]) -> Float[Tensor, "n t"]:
    stream, tokens = decoded.stream[vector], decoded.tokens
    if isinstance(decoded, Products):
        return stream.float() @ decoded.query[:, :tokens]
    if isinstance(decoded, Pairs):
        if decoded.levels is not None:
            stream = decoded.levels[stream.to(torch.int64)].flatten(1)
        query = decoded.query[:, :tokens].transpose(1, 2).flatten(0, 1)[: stream.shape[1]]
        return (stream.double() @ query.double()).float() * decoded.step  # doubles add exactly
    total = stream.new_zeros(len(vector), tokens, dtype=torch.int32)
    for b, table in enumerate(decoded.table[..., :tokens]):
        total += table[stream[:, b].to(torch.int64)]
    if decoded.scales is None:
        return total.float() * decoded.step
    return (
        total.float() * (decoded.step * decoded.scales[0, stream[:, -2].to(torch.int64)])[:, None]
    )


def _blocks(decoded: Decoded, pages: Pages) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Slices of the results, with owners and similarities [n, T] of their vectors."""
    pages.check()
    width = max(decoded.tokens, 2 * decoded.stream.shape[1])
    for place, owner, vector in pages.blocks(max(1, _CHUNK // width)):
        similarity = _inner(decoded, vector)
        if decoded.base is not None:
            similarity += decoded.base[pages.rows_of(vector), : decoded.tokens]
        if isinstance(decoded, Rows) and decoded.scales is not None:
            similarity *= decoded.scales[1, decoded.stream[vector, -1].to(torch.int64)][:, None]
        if decoded.factor is not None:
            similarity *= decoded.factor[vector].float()[:, None]
        yield place, owner, similarity


def score(decoded: Decoded, pages: Pages) -> Float[Tensor, "n"]:
    """sum_t max_j; -inf for pages without vectors."""
    out = torch.empty(len(pages), device=pages.offsets.device)
    for place, owner, similarity in _blocks(decoded, pages):
        if not bool(torch.isfinite(similarity).all()):
            refuse(decoded, pages)
        best = similarity.new_full((place.stop - place.start, decoded.tokens), -torch.inf)
        best.scatter_reduce_(0, owner[:, None].expand_as(similarity), similarity, "amax")
        out[place] = best.sum(-1, dtype=torch.float64).float()
    return out


def similarities(decoded: Decoded, pages: Pages) -> Float[Tensor, "v t"]:
    """All of a single page."""
    blocks = [similarity for _, _, similarity in _blocks(decoded, pages)]
    return torch.cat(blocks)


def refuse(decoded: Decoded, pages: Pages) -> None:
    """Raises ConfigError that says which page cannot be scored, and why."""
    pages.check()
    for place, owner, similarity in _blocks(decoded, pages):
        flawed = (~torch.isfinite(similarity)).any(-1).nonzero()
        if len(flawed):
            result = place.start + int(owner[flawed[0]])
            page = result if pages.selected is None else int(pages.selected[result])
            raise ConfigError(f"page {page} holds values that are NaN or infinite: encode it again")
    pages.refuse()
