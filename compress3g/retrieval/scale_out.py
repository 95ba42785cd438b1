"""Encoders in Ray actors, on one machine or many that share the folder of the index."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.checkpoint import StopSignal
from ..errors import BackendError, require
from . import build
from .build import Added, Document, Note, Outcome
from .shards import Part, ShardIntake, ShardSettings, ShardWriter, Written, parts_of
from .writer import Writer

_AHEAD = 4  # parts that each actor may be ahead of what is committed
_RESTARTS = 2  # of an actor that died, before the build gives up


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
        _encoders(settings, actors) as workers,
        Writer(Path(settings.folder)) as writer,
        StopSignal() as stop,
    ):
        intake = ShardIntake(writer)
        try:
            done = build.add_documents(
                writer, workers.documents(documents, intake.unchanged), intake, strict=strict,
                stopped=lambda: stop.requested, outcome=outcome, note=note,
            )  # fmt: skip
        finally:
            workers.stop()
            writer.collect_garbage()  # what they had not finished
    return done, stop.requested


@contextmanager
def _encoders(settings: ShardSettings, count: int | None) -> Iterator[Encoders]:
    """Actors for one addition; Ray is started, and stopped again, unless it runs already.

    RAY_ADDRESS names a cluster. Raises MissingExtra.
    """
    ray = require("ray", extra="ray", purpose="--ray")
    ours = not ray.is_initialized()
    if ours:
        local = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(logging_level="error", **local)
    try:
        yield Encoders(ray, settings, count)
    finally:
        if ours:
            ray.shutdown()


class Encoders:
    """Actors that write segments, see `ShardWriter`."""

    def __init__(self, ray: Any, settings: ShardSettings, count: int | None) -> None:
        resources = ray.cluster_resources()
        processors, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
        self.count = count or int(gpus) or max(1, int(processors) // 4)
        # Fractions where there are more actors than processors: they could never all start.
        share = processors / self.count
        cpus = 1 if gpus and share >= 1 else share if share < 1 else int(share)
        actor = ray.remote(
            num_cpus=cpus,
            num_gpus=min(1.0, gpus / self.count),
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )(ShardWriter)
        self._ray = ray
        self._actors = [actor.remote(settings, max(1, int(cpus))) for _ in range(self.count)]

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
            cause = getattr(error, "cause", None) or error
            told = " ".join(f"{type(cause).__name__}: {cause}".split())[:160]
            raise BackendError(
                f"an encoder process failed ({told}): complete documents are kept, run it again"
            ) from None
        return written

    def stop(self) -> None:
        """Ends the actors: nobody writes into the folder any more."""
        for actor in self._actors:
            self._ray.kill(actor)


def _write(actor: Any, part: Part) -> Any:
    return actor.write.remote(part)
