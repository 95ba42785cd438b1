"""Several processes that share the work of each update, and random numbers all of them agree on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Generator, Tensor

from ..errors import ConfigError, require


def join() -> None:
    """Joins the other processes that accelerate or torchrun started, each with a GPU of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        require("accelerate", extra="diffusion", purpose="several processes").PartialState()


def processes(pieces: int, option: str) -> tuple[int, int]:
    """Rank and number of processes, which share out as many pieces of work as an option says.

    Raises ConfigError when they cannot share evenly.
    """
    join()
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    world = dist.get_world_size()
    if pieces % world:
        raise ConfigError(
            f"{world} processes cannot share {option} {pieces} evenly: give a multiple of {world}"
        )
    return dist.get_rank(), world


def first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def summed(world: int, parts: Sequence[Tensor]) -> None:
    """Replaces every tensor by its sum over the processes."""
    if world > 1:
        for part in parts:
            dist.all_reduce(part)


def seed_of(*numbers: int) -> int:
    """One seed of several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def generator(*numbers: int, device: Any = "cpu") -> Generator:
    """Random numbers that depend on nothing but these numbers: runs resume and split exactly."""
    return Generator(device).manual_seed(seed_of(*numbers))
