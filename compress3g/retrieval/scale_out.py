"""Encoders in Ray actors, on one machine or many that share the folder of the index."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.checkpoint import StopSignal
from ..errors import require
from . import build
from .build import Added, Document, Note, Outcome
from .ray_cluster import actor_share, failed_actor, started_ray
from .shards import Part, ShardIntake, ShardSettings, ShardWriter, Written, parts_of
from .writer import Writer

_AHEAD = 4  # parts that each actor may be ahead of what is committed


def add_documents(
    settings: ShardSettings,
    documents: Iterable[Document[Any]],
    note: Note,
    outcome: Outcome,
    *,
    actors: int | None,
    strict: bool,
) -> tuple[Added, bool]:
    """What was added, as `build.add_documents` does, and whether it was told to stop.

    actors: None for one for each GPU, or for every four processors where there is none.
    """
    # Ray comes first: it has a way of its own to be stopped, which StopSignal replaces.
    with (
        started_ray() as ray,
        Writer(Path(settings.folder)) as writer,
        StopSignal() as stop,
    ):
        intake, workers = ShardIntake(writer), Encoders(ray, settings, actors)
        try:
            done = build.add_documents(
                writer, workers.documents(documents, intake.unchanged), intake, strict=strict,
                stopped=lambda: stop.requested, outcome=outcome, note=note,
            )  # fmt: skip
        finally:
            workers.stop()
            writer.collect_garbage()  # what they had not finished
    return done, stop.requested


class Encoders:
    """Actors that write segments, see `ShardWriter`."""

    def __init__(self, ray: Any, settings: ShardSettings, count: int | None) -> None:
        share = actor_share(ray, count, use_gpus=True)
        self.count = share.count
        actor = ray.remote(**share.options)(ShardWriter)
        self._ray = ray
        self._actors = [actor.remote(settings, share.threads) for _ in range(self.count)]

    def documents(
        self, documents: Iterable[Document[Any]], unchanged: Callable[[Document[Any]], bool]
    ) -> Iterator[Document[Written]]:
        """The same documents in the same order; those that come next are already being encoded."""
        pool = require("ray.util", extra="ray", purpose="--ray").ActorPool(self._actors)
        waiting: deque[tuple[Document[Any], int]] = deque()
        for document in documents:
            parts = [] if unchanged(document) else parts_of(document.path)
            for part in parts:
                pool.submit(_write, part)
            waiting.append((document, len(parts)))
            while sum(n for _, n in waiting) - waiting[0][1] >= _AHEAD * self.count:
                yield self._when_written(pool, *waiting.popleft())
        while waiting:
            yield self._when_written(pool, *waiting.popleft())

    def _when_written(self, pool: Any, document: Document[Any], parts: int) -> Document[Written]:
        # All of them, even after a mistake in one: results come in the order of submission.
        return replace(document, pages=lambda: [self._next(pool) for _ in range(parts)])

    def _next(self, pool: Any) -> Written:
        try:
            written: Written = pool.get_next()
        except self._ray.exceptions.RayError as error:
            remedy = "complete documents are kept, run it again"
            raise failed_actor(error, "an encoder process", remedy) from None
        return written

    def stop(self) -> None:
        """Ends the actors: nobody writes into the folder any more."""
        for actor in self._actors:
            self._ray.kill(actor)


def _write(actor: Any, part: Part) -> Any:
    return actor.write.remote(part)
