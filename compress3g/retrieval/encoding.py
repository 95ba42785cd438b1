"""Codebook and codecs of an index together: vectors in, the arrays of a segment out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float16, Float32, Int64

from .binary import SignCodec, fit_signs
from .codebook import Codebook, Sampler, sample_size, train_codebook
from .deduplicate import unique_codes
from .page_graph import pooled_pages
from .places import pack_places
from .residual import ResidualCodec, fit_codec, load_codec
from .segment import PageRows, Segment
from .vectors import PageVectors

if TYPE_CHECKING:
    from .array_folder import Array
    from .config import IndexConfig


GIVEN = "given"  # saliency that came with vectors, of unknown kind
_SALIENCY = "saliency."  # how arrays of signals begin


def raw_rows(
    page_ids: Sequence[int], pages: Sequence[PageVectors], signals: Sequence[str] = ()
) -> PageRows:
    """Pages as they wait for a codebook: vectors in half precision, nothing compressed.

    signals: kinds of saliency to keep besides, NaN for pages that do not tell it.
    """
    vectors: dict[str, Array] = {
        "store": np.concatenate([p.vectors for p in pages]).astype(np.float16),
        "grid": np.concatenate([p.grid for p in pages]).astype(np.int16),
        "kind": np.concatenate([p.kind for p in pages]).astype(np.uint8),
    }
    for name in signals:
        told = [p.saliency if name == GIVEN else p.signals.get(name) for p in pages]
        filled = [
            np.full(len(p), np.nan) if s is None else s for p, s in zip(pages, told, strict=True)
        ]
        vectors[_SALIENCY + name] = np.concatenate(filled).astype(np.float16)
    lengths = np.asarray([len(p) for p in pages], np.int64)
    return PageRows(np.asarray(page_ids, np.int64), lengths, vectors)


def pages_of(rows: PageRows) -> Iterator[PageVectors]:
    """The pages whose originals the rows keep, with what else they keep of them."""
    x, start = stored_vectors(rows), 0
    assert x is not None
    for length in rows.lengths.tolist():
        span = slice(start, start + length)
        parts = {n: rows.vectors[n][span] for n in ("grid", "kind") if n in rows.vectors}
        told = {n: rows.vectors[_SALIENCY + n][span] for n in kept_signals(rows)}
        yield PageVectors(x[span], told.pop(GIVEN, None), signals=told, **parts)
        start += length


def kept_signals(rows: PageRows) -> list[str]:
    """Kinds of saliency that the rows keep."""
    return [n.removeprefix(_SALIENCY) for n in rows.vectors if n.startswith(_SALIENCY)]


def stored_signals(segments: Iterable[Segment]) -> list[str]:
    """Kinds of saliency that all segments keep, of every vector."""
    common: list[str] | None = None
    for segment in segments:
        names = [n.removeprefix(_SALIENCY) for n in segment.arrays if n.startswith(_SALIENCY)]
        names = [n for n in names if not np.isnan(segment.arrays[_SALIENCY + n]).any()]
        common = names if common is None else [n for n in common if n in names]
    return common or []


def stored_vectors(rows: PageRows) -> Float32[np.ndarray, "m d"] | None:
    """The originals that the rows keep, None when they keep none."""
    if "store" not in rows.vectors:
        return None
    return originals(rows.vectors["store"], rows.vectors.get("store_scale"))


def originals(store: Array, scale: Array | None) -> Float32[np.ndarray, "m d"]:
    """Float vectors from a store of half precision, or of bytes with a scale per row."""
    x = np.asarray(store, np.float32)
    return x if scale is None else x * scale[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """Everything that was learned from the corpus. `sign` is the binary mode, if it is on.

    page_frequency: pages that hold each centroid, where pages are pruned by it.
    """

    config: IndexConfig
    codebook: Codebook
    residual: ResidualCodec
    sign: SignCodec | None
    page_frequency: Int64[np.ndarray, "k"] | None = None

    @classmethod
    def train(
        cls, vectors: Iterable[Float16[np.ndarray, "_ d"]], pages: int, config: IndexConfig
    ) -> Encoding:
        """Learns from a uniform sample of the vectors of so many pages, in bounded memory.

        Raises VectorError when there are none.
        """
        k, seen = config.centroids(pages), 0
        sampler = Sampler(sample_size(k), config.seed)
        for page in vectors:
            sampler.add(page)
            seen += len(page)
        sample = sampler.sample()
        provisional = config.grow and seen < sample_size(k)
        trained = train_codebook(sample, k, config.seed, provisional=provisional)
        codebook = replace(trained, seen=seen)
        residual = fit_codec(config.residual, sample, codebook, config.seed)
        sign = fit_signs(sample, config.seed) if config.binary == "sign" else None
        return cls(config, codebook, residual, sign)

    @property
    def growing(self) -> bool:
        """Whether another codebook will follow, for which segments keep their vectors."""
        return self.config.grow and not self.codebook.full_grown

    def with_page_frequency(self, pages: Iterable[Float16[np.ndarray, "_ d"]]) -> Encoding:
        """The encoding with counts of all pages."""
        frequency = np.zeros(self.codebook.k, np.int64)
        for page in pages:
            frequency[np.unique(self.codebook.assign(page))] += 1
        return replace(self, page_frequency=frequency)

    def encode(self, rows: PageRows) -> PageRows:
        """The rows compressed; the store stays where the configuration or a next codebook wants it.

        Raises ValueError when the rows keep no originals.
        """
        x = stored_vectors(rows)
        if x is None:
            raise ValueError("these pages keep no vectors")
        codes = self.codebook.assign(x)
        offsets = np.concatenate(([0], np.cumsum(rows.lengths)))
        unique, bounds = unique_codes(codes, offsets)
        vectors: dict[str, Array] = {}
        streams = {"unique": (unique, np.diff(bounds))}
        if self.config.patches:
            vectors["codes"] = codes
            streams["places"] = _places(rows)
        if self.residual.bytes_per_vector:
            vectors["residual"], inv_norm = self.residual.encode(x, codes)
            if inv_norm is not None:
                vectors["inv_norm"] = inv_norm
        if self.sign is not None:
            vectors["bits"], vectors["scale"] = self.sign.encode(x)
        if self.config.store != "none":  # to try other prunings with (evaluate.py)
            kept = [n for n in rows.vectors if n == "kind" or n.startswith(_SALIENCY)]
            vectors.update({n: rows.vectors[n] for n in kept})
        if self.config.store == "f16":
            vectors["store"] = x.astype(np.float16)
        elif self.config.store == "int8" or self.growing:
            vectors["store"], vectors["store_scale"] = _bytes_of(x)
        pooled = pooled_pages(x, rows.lengths) if self.config.graph else None
        return PageRows(rows.page_ids, rows.lengths, vectors, streams, pooled)

    def drift(self, x: Float32[np.ndarray, "m d"]) -> float:
        """Mean squared distance from the centroids, as a multiple of what it was in training."""
        return self.codebook.energy_of(x) / max(self.codebook.energy, 1e-6)

    def to_arrays(self) -> dict[str, Array]:
        """All arrays, by part."""
        parts = {"": self.codebook.to_arrays(), "residual.": self.residual.to_arrays()}
        if self.sign is not None:
            parts["sign."] = self.sign.to_arrays()
        if self.page_frequency is not None:
            parts[""] = {**parts[""], "page_frequency": self.page_frequency}
        return {prefix + name: a for prefix, part in parts.items() for name, a in part.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], config: IndexConfig) -> Encoding:
        """The encoding that `to_arrays` stored."""
        codebook = Codebook.from_arrays(arrays)
        if not codebook.seen and config.store != "none":  # an older index, which can grow too
            codebook = replace(codebook, seen=int(codebook.counts.sum()))
        residual = load_codec(config.residual, codebook, _part(arrays, "residual."))
        stored = _part(arrays, "sign.")
        sign = SignCodec.from_arrays(stored) if stored else None
        return cls(config, codebook, residual, sign, arrays.get("page_frequency"))


def _places(rows: PageRows) -> tuple[Array, Int64[np.ndarray, "p"]]:
    if "places" in rows.streams:
        return rows.streams["places"]
    return pack_places(rows.vectors["grid"], rows.lengths)


def _part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _bytes_of(
    x: Float32[np.ndarray, "m d"],
) -> tuple[Array, Float32[np.ndarray, "m"]]:
    """Signed bytes and a scale per row: |error| <= max |x| / 254."""
    scale = np.abs(x).max(1, initial=0) / 127
    safe = np.where(scale > 0, scale, 1)[:, None]
    return np.rint(x / safe).astype(np.int8), scale.astype(np.float32)
