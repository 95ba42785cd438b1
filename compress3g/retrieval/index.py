"""`Index`: pages of documents, found by late interaction over compressed vectors."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32

from ..engine.checkpoint import StopSignal
from ..errors import ConfigError, DocumentError, FormatError, VectorError
from . import build, maintenance
from .build import Added, Intake, Note
from .catalog import Catalog, Change, DocumentRow
from .config import IndexConfig
from .filters import parse_where
from .search import Ranking, SearchConfig, search, similarities
from .sources import find_sources, fingerprint
from .vectors import PageVectors
from .view import View, load_view
from .writer import Writer

if TYPE_CHECKING:
    from .encoders.protocol import Encoder

PRECOMPUTED = "precomputed"  # fingerprint of an index that is only ever given vectors


@dataclass(frozen=True, slots=True)
class Hit:
    """A page that was found. doc: path; page: from 1; page_id: for ever; meta: the document's."""

    doc: str
    page: int
    score: float
    page_id: int
    meta: Mapping[str, Any]
    _heatmap: Callable[[], Float32[np.ndarray, "t h w"]] = field(repr=False, compare=False)

    def heatmap(self) -> Float32[np.ndarray, "t h w"]:
        """Similarity of each query token to each patch of the page; NaN where no vector is kept.

        From the index alone. Raises ConfigError when it keeps no patches.
        """
        return self._heatmap()


@dataclass(frozen=True, slots=True)
class Info:
    """What an index holds; bytes by array, and per living page."""

    path: str
    format: int
    generation: int
    encoder: str
    dimension: int
    config: Mapping[str, Any]
    centroids: int
    documents: int
    pages: int
    deleted_pages: int
    waiting_pages: int
    vectors: int
    segments: int
    bytes: int
    bytes_per_page: float
    arrays: Mapping[str, int]


class Index:
    """A folder of segments and a catalog. Many readers, one writer; a reader sees what it opened.

    >>> index = Index.create("idx", dimension=128)                      # doctest: +SKIP
    >>> index.add_vectors("a.pdf", pages)                               # doctest: +SKIP
    >>> index.search_vectors(query, k=10)                               # doctest: +SKIP
    """

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        encoder: Encoder | None,
        mmap: bool,
        allow_damaged: bool,
    ) -> None:
        self.path = path
        self._catalog, self._encoder = catalog, encoder
        self._mmap, self._allow_damaged = mmap, allow_damaged
        self.refresh()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: Encoder | None = None,
        config: IndexConfig | None = None,
        dimension: int | None = None,
    ) -> Index:
        """A new, empty index. Without an encoder say the `dimension` and add vectors.

        Raises FormatError where there is an index already, ConfigError without a dimension.
        """
        if encoder is None and dimension is None:
            raise ConfigError("a new index needs an encoder, or the dimension of its vectors")
        width = int(encoder.dim if encoder is not None else dimension or 0)
        if not 8 <= width <= 4096 or width % 8:
            raise ConfigError(f"vectors of dimension {width}: a multiple of 8 up to 4096 is needed")
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        meta = {
            "encoder": "" if encoder is None else encoder.name,
            "fingerprint": PRECOMPUTED if encoder is None else encoder.fingerprint,
            "dimension": str(width),
            "config": config_to_json(config or IndexConfig()),
        }
        catalog = Catalog.create(folder, meta)
        return cls(folder, catalog, encoder, True, False)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: Encoder | None = None,
        mmap: bool = True,
        allow_damaged: bool = False,
    ) -> Index:
        """The index in a folder. The encoder it was built with is loaded when first needed.

        mmap=False reads it into memory. allow_damaged leaves damaged segments out. Raises
        FormatError for what is no index, damaged or newer; ConfigError for another encoder.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FormatError(f"{folder} is not an index: no such folder")
        index = cls(folder, Catalog(folder), None, mmap, allow_damaged)
        if encoder is not None:
            index._use(encoder)
        return index

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._view)

    def close(self) -> None:
        """Closes the catalog; arrays that are in use stay mapped."""
        self._catalog.close()

    def refresh(self) -> None:
        """Sees what has been committed since."""
        snapshot = self._catalog.snapshot()
        self.config = config_from_json(snapshot.meta["config"])
        self.dimension = int(snapshot.meta["dimension"])
        self._view: View = load_view(
            self.path, self._catalog, self.config,
            map=self._mmap, allow_damaged=self._allow_damaged,
        )  # fmt: skip

    @property
    def encoder(self) -> Encoder:
        """The encoder the index was built with. Raises ConfigError when it is another one now."""
        if self._encoder is None:
            name = self._view.snapshot.meta["encoder"]
            if not name:
                raise ConfigError("the index was built from vectors: search it with vectors too")
            from .encoders import load_encoder

            self._use(load_encoder(name))
        assert self._encoder is not None
        return self._encoder

    def _use(self, encoder: Encoder) -> None:
        wanted = self._view.snapshot.meta["fingerprint"]
        if encoder.fingerprint != wanted:
            raise ConfigError(
                f"the index was built with encoder {wanted!r}, this one is"
                f" {encoder.fingerprint!r}: open it with the same, or build it anew"
            )
        self._encoder = encoder

    # Changing ------------------------------------------------------------------------------------

    def add(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        metadata: Mapping[str, Any] | None = None,
        strict: bool = False,
        note: Note | None = None,
        report: Callable[[str, str, int], None] | None = None,
    ) -> Added:
        """Files and folders encoded and committed in batches; unchanged ones are left alone.

        A file is known by path and SHA-256: a changed one replaces its pages at once. What cannot
        be read is skipped and listed, with `strict` it is an error. SIGINT commits what is
        complete and stops. report(path, outcome, pages) is called for every file. Raises LockError
        when another process writes, VectorError for vectors no encoder should give.
        """
        from .documents import SUFFIXES, encoded_pages

        meta = _checked_metadata(metadata)
        files = find_sources(paths, SUFFIXES)
        done = Added()
        with Writer(self.path) as writer, StopSignal() as stop:
            intake = self._intake(writer)
            try:
                for i, path in enumerate(files):
                    if stop.requested:
                        break
                    (note or _quiet)("add", i, len(files))
                    outcome, pages = self._add_file(
                        intake, writer, path, meta, done, strict,
                        lambda p: _until(stop, encoded_pages(p, self.encoder)),
                    )  # fmt: skip
                    (report or _no_report)(str(path), outcome, pages)
                intake.commit()
                if not stop.requested:
                    build.encode_waiting(writer, self.config, note or _quiet)
            except (DocumentError, VectorError, ConfigError):
                intake.commit()
                raise
            finally:
                intake.close()
        self.refresh()
        if stop.requested:
            raise KeyboardInterrupt
        return done
