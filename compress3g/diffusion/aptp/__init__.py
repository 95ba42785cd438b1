"""APTP (2406.12042): a router that sends every prompt to a network of the size it needs."""

from .codes import Space, space_of
from .config import AptpConfig
from .experts import Expert, expert_of
from .pipeline import AptpPipeline
from .router import Router
from .trainer import train_router

__all__ = [
    "AptpConfig", "AptpPipeline", "Expert", "Router", "Space", "expert_of", "space_of",
    "train_router",
]  # fmt: skip
