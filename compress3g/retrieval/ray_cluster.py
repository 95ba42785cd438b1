"""Ray, started for as long as something needs it, and how much of it an actor takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import BackendError, require

RESTARTS = 2  # of an actor that died, before its work is given up


@contextmanager
def started_ray(*, quiet: bool = False) -> Iterator[Any]:
    """The module, with Ray running; stopped again unless it ran before.

    quiet: what actors print, and Ray says of them, does not go to standard output. RAY_ADDRESS
    names a cluster. Raises MissingExtra.
    """
    ray = require("ray", extra="ray", purpose="--ray")
    ours = not ray.is_initialized()
    if ours:
        local = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(logging_level="error", log_to_driver=not quiet, **local)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


@dataclass(frozen=True, slots=True)
class ActorShare:
    """Actors, and what each of them may take."""

    count: int
    processors: float
    gpus: float

    @property
    def threads(self) -> int:
        """Whole processors of an actor, at least one."""
        return max(1, int(self.processors))

    @property
    def options(self) -> dict[str, Any]:
        """For `ray.remote`."""
        return {
            "num_cpus": self.processors, "num_gpus": self.gpus,
            "max_restarts": RESTARTS, "max_task_retries": RESTARTS,
        }  # fmt: skip


def actor_share(ray: Any, count: int | None, *, use_gpus: bool) -> ActorShare:
    """Of the whole cluster; count: None for one a GPU, or one for every four processors."""
    resources = ray.cluster_resources()
    processors = resources.get("CPU", 1.0)
    gpus = resources.get("GPU", 0.0) if use_gpus else 0.0
    count = count or int(gpus) or max(1, int(processors) // 4)
    # Fractions where there are more actors than processors: they could never all start.
    share = processors / count
    cpus = 1 if gpus and share >= 1 else share if share < 1 else int(share)
    return ActorShare(count, cpus, min(1.0, gpus / count))


def failed_actor(error: Exception, what: str, remedy: str) -> BackendError:
    """One line about an actor that failed for good."""
    cause = getattr(error, "cause", None) or error
    told = " ".join(f"{type(cause).__name__}: {cause}".split())[:160]
    return BackendError(f"{what} failed ({told}): {remedy}")
