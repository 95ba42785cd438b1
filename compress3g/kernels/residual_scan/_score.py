"""MaxSim sum_t max_j <q_t, x_j> of candidate pages, for every way a page's vectors are stored."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import ConfigError
from .._pages import Array, Pages, as_tensor
from ..registry import pick
from ._decoded import Decoded, Pairs, Products, Rows, pad, pairs, rows

_F32 = (torch.float32,)
_F16 = (torch.float16,)
MOST_TOKENS = 1024
MOST_DIMS = 1 << 16


def score_pq(
    similarity: Array,
    tables: Array,
    codes: Array,
    residual: Array,
    scales: Array,
    offsets: Array,
    pages: Array | None = None,
) -> Float[Tensor, "n"]:
    """Scores of vectors f (c_code + g r) with r in a product quantiser, g and f among 256 each.

    similarity: query to centroids, f32 [T, K]; tables: query to the 256 words of each of m
    sub-quantisers, f32 [T, m, 256]; codes u8 or u16 [N]; residual u8 [N, m + 2], the words of r,
    then the numbers of g and f; scales f32 [2, 256], all g and all f; page p owns the vectors
    offsets[p] .. offsets[p+1]-1; scores come in the order of `pages`, and are -inf for pages
    without vectors.
    Raises ConfigError on values that are not finite, and on shapes, dtypes, codes, offsets or page
    numbers that do not fit.
    """
    return _score(*_pq(similarity, tables, codes, residual, scales, offsets, pages))


def similarities_pq(
    similarity: Array,
    tables: Array,
    codes: Array,
    residual: Array,
    scales: Array,
    offsets: Array,
    *,
    page: int,
) -> Float[Tensor, "t m"]:
    """Similarities of one page behind `score_pq`; `.max(-1)` gives each token's best vector."""
    only = _only(page, offsets)
    return _similarities(*_pq(similarity, tables, codes, residual, scales, offsets, only))


def score_buckets(
    query: Array,
    similarity: Array,
    codes: Array,
    packed: Array,
    levels: Array,
    inv_norm: Array,
    offsets: Array,
    pages: Array | None = None,
    *,
    bits: int,
) -> Float[Tensor, "n"]:
    """Scores of vectors c_code + r with r in 1, 2 or 4 bits per dimension.

    query f32 [T, D]; packed u8 [N, D bits / 8], dimensions from the lowest bit on; levels f32
    [2^bits], the values of the buckets; inv_norm f16 [N], by which vectors are multiplied; all
    else, and the errors, as in `score_pq`.
    """
    return _score(
        *_buckets(query, similarity, codes, packed, levels, inv_norm, offsets, pages, bits)
    )


def similarities_buckets(
    query: Array,
    similarity: Array,
    codes: Array,
    packed: Array,
    levels: Array,
    inv_norm: Array,
    offsets: Array,
    *,
    page: int,
    bits: int,
) -> Float[Tensor, "t m"]:
    """Similarities of one page behind `score_buckets`."""
    only = _only(page, offsets)
    return _similarities(
        *_buckets(query, similarity, codes, packed, levels, inv_norm, offsets, only, bits)
    )


def score_float(
    query: Array,
    vectors: Array,
    offsets: Array,
    pages: Array | None = None,
    *,
    scale: Array | None = None,
) -> Float[Tensor, "n"]:
    """Scores of vectors f16 [N, D] in float32, or i8 [N, D] times scale f32 [N].

    Offsets, pages and errors as in `score_pq`.
    """
    return _score(*_float(query, vectors, offsets, pages, scale))


def similarities_float(
    query: Array, vectors: Array, offsets: Array, *, page: int, scale: Array | None = None
) -> Float[Tensor, "t m"]:
    """Similarities of one page behind `score_float`."""
    return _similarities(*_float(query, vectors, offsets, _only(page, offsets), scale))


def _only(page: int, offsets: Array) -> Tensor:
    return torch.tensor([page], device=offsets.device if isinstance(offsets, Tensor) else None)


def _score(decoded: Decoded, pages: Pages) -> Tensor:
    backend = pick("residual_scan", pages.offsets.device)
    return backend.score(decoded, pages)  # type: ignore[no-any-return]


def _similarities(decoded: Decoded, pages: Pages) -> Tensor:
    backend = pick("residual_scan", pages.offsets.device)
    return backend.similarities(decoded, pages).T  # type: ignore[no-any-return]


def finite(array: Array, name: str, ndim: int) -> Tensor:
    """A float32 tensor of `ndim` axes, all of it finite, or ConfigError."""
    tensor = as_tensor(array, name, _F32, ndim)
    flawed = int((~torch.isfinite(tensor)).sum())
    if flawed:
        raise ConfigError(f"{flawed} of {tensor.numel()} values of {name} are NaN or infinite")
    return tensor


def same(name: str, shape: tuple[int, ...], wanted: tuple[int, ...], why: str) -> None:
    """Raises ConfigError unless the shapes are equal."""
    if shape != wanted:
        raise ConfigError(f"{name} of shape {shape}: need {wanted} for {why}")


def tokens_of(query: Tensor, name: str) -> int:
    """Number of query tokens, or ConfigError when there are none or more than 1024."""
    if not 1 <= len(query) <= MOST_TOKENS:
        raise ConfigError(f"{name} of {len(query)} query tokens: need 1 to {MOST_TOKENS}")
    return len(query)


def placed(pages: Pages, *tensors: Tensor | None) -> None:
    """Raises ConfigError when something lies on another device than the pages."""
    devices = {str(t.device) for t in (pages.offsets, *tensors) if t is not None}
    if len(devices) > 1:
        raise ConfigError(f"inputs on {' and '.join(sorted(devices))}: move them to one device")


def _base(similarity: Array, tokens: int) -> Tensor:
    """Similarities to centroids [K, padded], from [T, K]."""
    base = finite(similarity, "similarity", 2)
    same("similarity", tuple(base.shape), (tokens, base.shape[1]), f"{tokens} query tokens")
    if not 1 <= base.shape[1] <= 1 << 16:
        raise ConfigError(f"similarity to {base.shape[1]} centroids: need 1 to 65536")
    return pad(base.T)


def _pq(
    similarity: Array,
    tables: Array,
    codes: Array,
    residual: Array,
    scales: Array,
    offsets: Array,
    pages: Array | None,
) -> tuple[Rows, Pages]:
    words = finite(tables, "tables", 3)
    tokens = tokens_of(words, "tables")
    stream = as_tensor(residual, "residual", (torch.uint8,), 2)
    m = stream.shape[1] - 2
    same("tables", tuple(words.shape), (tokens, m, 256), "the bytes of `residual` but the last two")
    scale = finite(scales, "scales", 2)
    same("scales", tuple(scale.shape), (2, 256), "gains and factors")
    base = _base(similarity, tokens)
    own = Pages.of(offsets, pages, codes=codes, vectors=len(stream), rows=len(base))
    placed(own, base, words, stream, scale)
    return rows(base, words.permute(1, 2, 0), stream, None, scale), own


def _buckets(
    query: Array,
    similarity: Array,
    codes: Array,
    packed: Array,
    levels: Array,
    inv_norm: Array,
    offsets: Array,
    pages: Array | None,
    bits: int,
) -> tuple[Decoded, Pages]:
    if bits not in (1, 2, 4):
        raise ConfigError(f"{bits} bits per dimension: use 1, 2 or 4")
    vectors = _query(query)
    tokens, dims = vectors.shape
    stream = as_tensor(packed, "packed", (torch.uint8,), 2)
    same("packed", (8 * stream.shape[1],), (dims * bits,), f"{dims} dimensions of {bits} bits")
    value = finite(levels, "levels", 1)
    same("levels", tuple(value.shape), (1 << bits,), f"{bits} bits")
    factor = as_tensor(inv_norm, "inv_norm", _F16, 1)
    same("inv_norm", tuple(factor.shape), (len(stream),), f"{len(stream)} packed vectors")
    base = _base(similarity, tokens)
    own = Pages.of(offsets, pages, codes=codes, vectors=len(stream), rows=len(base))
    placed(own, base, vectors, stream, value, factor)
    # All values a byte stands for: [256, dimensions of one byte].
    place = bits * torch.arange(8 // bits, device=value.device)
    words = value[torch.arange(256, device=value.device)[:, None] >> place & (1 << bits) - 1]
    if bits == 4:  # a table of rows would outgrow the second-level cache
        return pairs(base, vectors, stream, factor, words), own
    return rows(base, byte_table(vectors, words), stream, factor), own


def byte_table(
    query: Float[Tensor, "t d"], words: Float[Tensor, "256 n"]
) -> Float[Tensor, "d/n 256 t"]:
    """Inner products of the query with every value of every byte of n dimensions."""
    split = query.unflatten(1, (-1, words.shape[1]))
    return torch.einsum("tbn,vn->bvt", split, words)


def _query(query: Array) -> Tensor:
    vectors = finite(query, "query", 2)
    tokens_of(vectors, "query")
    if not 1 <= vectors.shape[1] <= MOST_DIMS:
        raise ConfigError(f"query of {vectors.shape[1]} dimensions: need 1 to {MOST_DIMS}")
    return vectors


def _float(
    query: Array, vectors: Array, offsets: Array, pages: Array | None, scale: Array | None
) -> tuple[Products | Pairs, Pages]:
    tokens = _query(query)
    stored = as_tensor(vectors, "vectors", (torch.float16, torch.int8), 2)
    dims = tokens.shape[1]
    same("vectors", tuple(stored.shape), (len(stored), dims), f"a query of {dims} dimensions")
    if (scale is None) != (stored.dtype == torch.float16):
        raise ConfigError("int8 vectors need a scale each, float16 vectors have none")
    factor = None if scale is None else as_tensor(scale, "scale", _F32, 1)
    if factor is not None:
        same("scale", tuple(factor.shape), (len(stored),), f"{len(stored)} vectors")
    own = Pages.of(offsets, pages, vectors=len(stored))
    placed(own, tokens, stored, factor)
    if factor is not None:
        return pairs(None, tokens, stored, factor), own
    return Products(pad(tokens.T), stored, len(tokens)), own
