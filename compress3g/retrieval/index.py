"""`Index`: pages of documents, found by late interaction over compressed vectors."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32

from ..engine.checkpoint import StopSignal
from ..errors import ConfigError, DocumentError
from . import build, maintenance
from .build import Added, Document, Note, Outcome
from .catalog import Catalog, Change, DocumentRow
from .config import IndexConfig
from .filters import documents_where, pages_where
from .hits import Hit, heatmap_of, hit_of
from .info import PRECOMPUTED, Info, describe
from .search import Ranking, search
from .search_config import SearchConfig
from .vectors import PageVectors
from .view import View, load_view
from .writer import Writer

if TYPE_CHECKING:
    from .encoders.protocol import Encoder


def _quiet(*_: Any) -> None:
    """Nobody wants to know."""


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
        self._search: Callable[..., list[Ranking]] = search  # or by others (sharded.py)
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
            "grid": json.dumps(None if encoder is None else encoder.grid),
            "config": build.config_to_json(config or IndexConfig()),
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
        self.config = build.config_from_json(snapshot.meta["config"])
        self.dimension = int(snapshot.meta["dimension"])
        self._view: View = load_view(
            self.path, self._catalog, self.config,
            map=self._mmap, allow_damaged=self._allow_damaged,
        )  # fmt: skip

    def outdated(self) -> bool:
        """Whether something has been committed that `refresh` would show."""
        return self._catalog.generation() != self._view.snapshot.generation

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns into which the encoder divides every page, see `Encoder.grid`."""
        found = json.loads(self._view.snapshot.meta.get("grid", "null"))
        return None if found is None else (int(found[0]), int(found[1]))

    @property
    def encoder(self) -> Encoder:
        """The encoder the index was built with. Raises ConfigError when it is another one now."""
        if self._encoder is None:
            name = self._view.snapshot.meta["encoder"]
            if not name:
                raise ConfigError("the index was built from vectors: search it with vectors too")
            from .encoders import load_encoder

            self._use(load_encoder(name, signals=self.config.signals))
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

    def add(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        metadata: Mapping[str, Any] | None = None,
        strict: bool = False,
        ray: bool = False,
        actors: int | None = None,
        note: Note = _quiet,
        outcome: Outcome = _quiet,
    ) -> Added:
        """Files and folders encoded and committed in batches; unchanged ones are left alone.

        A file is known by path and SHA-256: a changed one replaces its pages at once. What cannot
        be read is skipped and listed, with `strict` it is an error. SIGINT commits what is
        complete and raises KeyboardInterrupt. Where the index has outgrown its codebook, it ends
        with a new one (build.py) and says so in `retrained`. ray: encode in Ray actors
        (scale_out.py), with the same page numbers; actors: how many, None for one a GPU or one for
        four processors. outcome(path, what, pages) is called for each file, note(what, done, total)
        about the work.
        Raises LockError when another process writes, VectorError for vectors that cannot be used.
        """
        from .documents import document_of, sources_for

        files = sources_for(paths, vectors=not self._view.snapshot.meta["encoder"])
        meta = build.checked_metadata(metadata)

        def documents() -> Iterator[Document[PageVectors]]:
            for i, path in enumerate(files):
                note("add", i, len(files))
                yield document_of(path, lambda: self.encoder, meta)

        if not ray:
            return self._add(documents(), strict, note, outcome)
        from .scale_out import add_documents
        from .shards import settings_of

        settings = settings_of(self.path, self._view.snapshot.meta)
        done = add_documents(settings, documents(), note, outcome, actors=actors, strict=strict)
        return self._shown(*done)

    def add_vectors(
        self,
        doc: str,
        pages: Iterable[PageVectors],
        *,
        metadata: Mapping[str, Any] | None = None,
        sha256: str | None = None,
    ) -> Added:
        """One document from its vectors, see `document`. For many, `add_documents` is faster.

        Raises VectorError naming document and page for NaN, zero rows and other dimensions.
        """
        return self.add_documents([self.document(doc, pages, metadata=metadata, sha256=sha256)])

    def document(
        self,
        doc: str,
        pages: Iterable[PageVectors],
        *,
        metadata: Mapping[str, Any] | None = None,
        sha256: str | None = None,
    ) -> Document[PageVectors]:
        """Something for `add_documents`. `sha256` names the content; without it, it is new."""
        content = sha256 or secrets.token_hex(32)
        return Document(doc, content, time.time(), build.checked_metadata(metadata), lambda: pages)

    def add_documents(
        self, documents: Iterable[Document[PageVectors]], *, note: Note = _quiet
    ) -> Added:
        """Documents of vectors, as `add` does files; the first of all train the codebook."""
        return self._add(documents, True, note, _quiet)

    def _add(
        self,
        documents: Iterable[Document[PageVectors]],
        strict: bool,
        note: Note,
        outcome: Outcome,
    ) -> Added:
        with Writer(self.path) as writer, StopSignal() as stop:
            done = build.add_documents(
                writer, documents, build.new_intake(writer), strict=strict,
                stopped=lambda: stop.requested, outcome=outcome, note=note,
            )  # fmt: skip
        return self._shown(done, stop.requested)

    def _shown(self, done: Added, stopped: bool) -> Added:
        """What was done, visible from now on."""
        self.refresh()
        if stopped:
            raise KeyboardInterrupt
        return done

    def remove(self, doc: str | None = None, *, where: str | None = None) -> int:
        """Flags documents as deleted, by path or by a condition; the number of pages.

        Visible at once, here and to whoever opens or refreshes. Raises DocumentError when no
        document matches.
        """
        if (doc is None) == (where is None):
            raise ConfigError("remove needs a document, or a condition")
        with Writer(self.path) as writer:
            if doc is not None:
                found = writer.catalog.documents("path = ?", [os.fsencode(doc)])
            else:
                found = documents_where(writer.catalog, str(where))
            if not found:
                raise DocumentError(f"no document {doc or where!r} in the index")
            change = Change("remove", remove_documents=[d.document for d in found])
            writer.commit(change)
        self.refresh()
        return sum(d.pages for d in found)

    def compact(self) -> maintenance.Compaction:
        """Rewrites the segments as one, without deleted pages. Page numbers stay."""
        with Writer(self.path) as writer:
            done = maintenance.compact(writer)
        self.refresh()
        return done

    def retrain(self, *, note: Note = _quiet) -> None:
        """A new codebook for the pages as they are now; additions do it by themselves at first.

        Raises ConfigError when the index keeps no vectors (any more).
        """
        with Writer(self.path) as writer:
            build.retrain(writer, self.config, note)
        self.refresh()

    def verify(self, *, deep: bool = False) -> maintenance.Verification:
        """Checks structure, with `deep` every byte; problems are listed, not raised."""
        return maintenance.verify(self.path, self._catalog, deep=deep)

    def documents(self) -> list[DocumentRow]:
        """The living documents as of now, by number."""
        return self._catalog.documents()

    def search(
        self,
        query: str | Sequence[str],
        k: int = 10,
        *,
        where: str | None = None,
        config: SearchConfig | None = None,
    ) -> Any:
        """Hits of one query, best first; a list of them for a sequence of queries.

        where: a condition over metadata (filters.py). config: everything else, its k gives way to
        a k that is not 10. Raises DocumentError for an empty query or index, ConfigError.
        """
        queries = [query] if isinstance(query, str) else list(query)
        for text in queries:
            if not text.strip():
                raise DocumentError("the query is empty: give at least one word")
        vectors = self.encoder.encode_queries(queries)
        found = self.search_vectors(vectors, k, where=where, config=config)
        return found[0] if isinstance(query, str) else found

    def search_vectors(
        self,
        queries: Sequence[Float[np.ndarray, "_ d"]],
        k: int = 10,
        *,
        where: str | None = None,
        config: SearchConfig | None = None,
    ) -> list[list[Hit]]:
        """Hits of each query, given as unit vectors; see `search`."""
        return self.hits(queries, self.rank(queries, k, where=where, config=config))

    def hits(
        self, queries: Sequence[Float[np.ndarray, "_ d"]], rankings: Sequence[Ranking]
    ) -> list[list[Hit]]:
        """What `rank` found for these queries, with documents and heat maps."""
        view = self._view
        pages = sorted({int(p) for r in rankings for p in r.page_ids})
        about = self._catalog.locate(pages)
        return [
            [
                hit_of(view, query, int(page), float(score), about)
                for page, score in zip(ranking.page_ids, ranking.scores, strict=True)
                if int(page) in about
            ]
            for query, ranking in zip(queries, rankings, strict=True)
        ]

    def rank(
        self,
        queries: Sequence[Float[np.ndarray, "_ d"]],
        k: int = 10,
        *,
        where: str | None = None,
        config: SearchConfig | None = None,
    ) -> list[Ranking]:
        """Page numbers, scores and times per stage, without a look at the documents."""
        settings = config or SearchConfig(k=k)
        view = self._view  # the same throughout, should another thread refresh
        allowed = None if where is None else pages_where(self._catalog, where)
        waiting = sum(s.pages for s in view.snapshot.segments if s.codebook is None)
        if waiting and view.encoding is None:
            raise DocumentError(
                f"{waiting} pages wait for a codebook: an addition was interrupted, run it again"
            )
        return self._search(view, queries, settings, allowed=allowed)

    def locate(self, page_id: int) -> tuple[DocumentRow, int] | None:
        """Document of a living page and the number within it, from 1; None without such a page."""
        if not len(self._view.positions_of(np.asarray([page_id], np.int64))):
            return None
        found = self._catalog.locate([page_id]).get(page_id)
        return None if found is None else (found[1], found[0] + 1)

    def heatmap(
        self, query: Float[np.ndarray, "t d"], page_id: int
    ) -> Float32[np.ndarray, "t h w"]:
        """See `Hit.heatmap`."""
        return heatmap_of(self._view, query, page_id)

    def info(self) -> Info:
        """Counts and bytes."""
        return describe(self.path, self._view, self._catalog, self.config)
