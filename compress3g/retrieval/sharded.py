"""One index searched by Ray actors, of one machine or of all that see its folder.

with open_sharded("idx", actors=8) as index:
    index.search("net revenue 2023")
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64

from ..errors import ConfigError
from .index import Index
from .page_shards import Crew, PageScorer, shards_of
from .ray_cluster import actor_share, failed_actor, started_ray
from .search import Ranking, prepared
from .search_config import SearchConfig
from .view import View

if TYPE_CHECKING:
    import os

    from .encoders.protocol import Encoder


class ShardedIndex(Index):
    """An index whose searches are shared out; everything else is that of `Index`."""

    def start(self, ray: Any, actors: int | None) -> None:
        """Searches in actors from now on. They stay as the index changes."""
        self._ray, self._wanted = ray, actors
        self._search = self._shared_out
        self._lock = threading.Lock()
        self._actors: list[Any] = []
        self._crew: tuple[View, Crew] | None = None

    def _shared_out(
        self,
        view: View,
        queries: Sequence[Float[np.ndarray, "_ d"]],
        config: SearchConfig,
        *,
        allowed: Int64[np.ndarray, "n"] | None,
    ) -> list[Ranking]:
        if config.graph == "on":
            raise ConfigError("--graph on needs one process: without it shards scan all pages")
        checked = prepared(view, queries, config)
        return self._working(view).search(view, checked, config, allowed)

    def _working(self, view: View) -> Crew:
        """The crew of a view."""
        with self._lock:
            if self._crew is None or self._crew[0] is not view:
                self._crew = (view, self._made(view))
            return self._crew[1]

    def _made(self, view: View) -> Crew:
        ray = self._ray
        if not self._actors:
            share = actor_share(ray, self._wanted, use_gpus=False)
            kind = ray.remote(**share.options)(PageScorer)
            self._actors = [kind.remote(share.threads) for _ in range(share.count)]
        actors = self._actors
        made = shards_of(
            view, self.config, self.path, len(actors), allow_damaged=self._allow_damaged
        )
        shards = [ray.put(shard) for shard in made]

        def ask(method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
            calls = [
                getattr(actor, method).remote(shard, *own)
                for actor, shard, own in zip(actors, shards, arguments, strict=False)
            ]
            try:
                answers: list[Any] = ray.get(calls)
            except ray.exceptions.RayError as error:
                self.stop()  # the next search starts others
                raise failed_actor(error, "a search process", "try again") from None
            return answers

        return Crew(ask, len(shards))

    def stop(self) -> None:
        """Ends the actors."""
        with self._lock:
            for actor in self._actors:
                self._ray.kill(actor)
            self._actors, self._crew = [], None


@contextmanager
def open_sharded(
    path: str | os.PathLike[str],
    *,
    encoder: Encoder | None = None,
    actors: int | None = None,
    allow_damaged: bool = False,
) -> Iterator[ShardedIndex]:
    """The index in a folder, searched by Ray actors, of one machine or of all that see the folder.

    actors: how many, None for one for every four processors. RAY_ADDRESS names a cluster. Raises
    as `Index.open`, MissingExtra; a search raises BackendError when an actor fails for good.
    """
    with (
        ShardedIndex.open(path, encoder=encoder, allow_damaged=allow_damaged) as index,
        started_ray(quiet=True) as ray,
    ):
        assert isinstance(index, ShardedIndex)
        index.start(ray, actors)
        try:
            yield index
        finally:
            index.stop()
