"""Fewer vectors a page, as an index is configured: pruned by saliency, then merged."""

from __future__ import annotations

from dataclasses import replace

from .config import IndexConfig, SaliencyName
from .encoding import Encoding, kept_signals, pages_of, raw_rows
from .pool import pool
from .prune import keep_patches, page_seed, random_saliency, rare_saliency
from .segment import PageRows
from .vectors import PageVectors


def needs_codebook(config: IndexConfig) -> bool:
    """Whether pages can only be pruned when it is known which centroids are rare."""
    return config.keep != 1.0 and config.saliency == "rare"


def with_saliency(
    page: PageVectors, name: SaliencyName, seed: int, encoding: Encoding | None
) -> PageVectors:
    """The page with saliency of the kind; that which came with it where it does not tell the kind.

    rare goes by the encoding's page frequency: how many pages hold each centroid.
    """
    if name == "random":
        return random_saliency(page, page_seed(page, seed))
    if name == "rare":
        assert encoding is not None
        assert encoding.page_frequency is not None
        codes = encoding.codebook.assign(page.vectors)
        return rare_saliency(page, codes, encoding.page_frequency)
    return replace(page, saliency=page.signals.get(name, page.saliency))


def reduced(page: PageVectors, config: IndexConfig, encoding: Encoding | None) -> PageVectors:
    """The page pruned and merged; as it is where that needs an encoding and there is none yet.

    Raises VectorError for a page without the saliency to prune by.
    """
    if encoding is None and needs_codebook(config):
        return page
    if config.keep != 1.0:
        chosen = with_saliency(page, config.saliency, config.seed, encoding)
        page = page.take(keep_patches(chosen, config.keep))
    return pool(page, config.pool) if config.pool > 1 else page


def reduced_rows(rows: PageRows, encoding: Encoding) -> PageRows:
    """Rows that waited for a codebook, reduced."""
    pages = [reduced(page, encoding.config, encoding) for page in pages_of(rows)]
    return raw_rows(rows.page_ids.tolist(), pages, kept_signals(rows))
