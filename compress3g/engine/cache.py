"""The user's folder for what can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$COMPRESS3G_CACHE, else $XDG_CACHE_HOME/compress3g, else ~/.cache/compress3g.

    It may not exist yet. Raises RuntimeError for a user without a home.
    """
    if chosen := os.environ.get("COMPRESS3G_CACHE"):
        return Path(chosen)
    if parent := os.environ.get("XDG_CACHE_HOME"):
        return Path(parent) / "compress3g"
    return Path.home() / ".cache" / "compress3g"
