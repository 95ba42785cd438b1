"""A search model for mteb 2.x: its retrieval tasks, ViDoRe among them, on an index of ours.

>>> import mteb                                                          # doctest: +SKIP
>>> model = IndexedSearch(load_encoder("vidore/colqwen2.5-v0.2"), IndexConfig())  # doctest: +SKIP
>>> mteb.evaluate(model, mteb.get_tasks(["VidoreDocVQARetrieval"]))      # doctest: +SKIP
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, require
from .config import IndexConfig
from .index import Index
from .search_config import SearchConfig

if TYPE_CHECKING:
    from .build import Document
    from .encoders.protocol import Encoder
    from .vectors import PageVectors

_BATCH = 4


class IndexedSearch:
    """Implements mteb's search protocol: `index` a corpus, then `search` it.

    The index is built in `folder`, a temporary one by default that goes with the model, anew for
    every corpus.
    """

    def __init__(
        self, encoder: Encoder, config: IndexConfig | None = None, *, folder: Path | None = None
    ) -> None:
        self._encoder, self._config = encoder, config or IndexConfig()
        self._folder = folder or Path(tempfile.mkdtemp(prefix="compress3g-"))
        if folder is None:
            # Not TemporaryDirectory, which warns when it goes with the object that owns it.
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._index: Index | None = None
        self._corpora = 0

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb calls the model in its results."""
        models = require("mteb.models.model_meta", extra="mteb", purpose="mteb's tasks")
        name = f"compress3g/{self._encoder.name.replace('/', '__')}"
        return models.ModelMeta.create_empty({"name": name, "revision": "1"})

    def index(self, corpus: Iterable[Mapping[str, Any]], **_: Any) -> None:
        """Builds the index of a corpus: rows with `id` and an `image`, or `title` and `text`.

        Whatever else mteb passes (task_metadata, hf_split, ...) makes no difference.
        """
        self._corpora += 1
        path = self._folder / f"corpus-{self._corpora}"
        self._index = Index.create(path, encoder=self._encoder, config=self._config)
        self._index.add_documents(self._documents(self._index, corpus))

    def _documents(
        self, index: Index, corpus: Iterable[Mapping[str, Any]]
    ) -> Iterator[Document[PageVectors]]:
        batch: list[Mapping[str, Any]] = []
        for row in corpus:
            batch.append(row)
            if len(batch) == _BATCH:
                yield from self._encoded(index, batch)
                batch = []
        if batch:
            yield from self._encoded(index, batch)

    def _encoded(
        self, index: Index, rows: list[Mapping[str, Any]]
    ) -> Iterator[Document[PageVectors]]:
        from .pages import page_of_image, page_of_text

        pictures = [
            page_of_image(row["image"])
            if row.get("image") is not None
            else page_of_text(" ".join(str(row.get(k) or "") for k in ("title", "text")).strip())
            for row in rows
        ]
        pages: list[PageVectors] = self._encoder.encode_pages(pictures)
        for row, page in zip(rows, pages, strict=True):
            yield index.document(str(row["id"]), [page])

    def search(
        self, queries: Iterable[Mapping[str, Any]], *, top_k: int, top_ranked: Any = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Scores of the best `top_k` documents by query: {query id: {document id: score}}.

        top_ranked: the only documents to score of each query, if given. Raises ConfigError before
        `index`.
        """
        if self._index is None:
            raise ConfigError("no corpus yet: call index() first")
        rows = list(queries)
        vectors = self._encoder.encode_queries([str(row["text"]) for row in rows])
        depth = len(self._index) if top_ranked else top_k
        config = SearchConfig(k=depth)
        results: dict[str, dict[str, float]] = {}
        found = self._index.search_vectors(vectors, config=config)
        for row, hits in zip(rows, found, strict=True):
            scores = {hit.doc: hit.score for hit in hits}
            if top_ranked:
                scores = {d: scores[d] for d in top_ranked[row["id"]] if d in scores}
            results[str(row["id"])] = dict(list(scores.items())[:top_k])
        return results
