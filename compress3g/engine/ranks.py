"""What the processes of a distributed run have to tell each other."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def of_all_ranks(value: T) -> list[T]:
    """The value of every process of the default group in rank order, on all of them; [value] alone.

    Any picklable value; processes of one run trust each other. All of them have to call this.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
