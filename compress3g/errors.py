"""Every error this package raises on purpose.

    Compress3GError             anything below; the command line prints it as one line, exit code 2
    ├── ConfigError             an option or a configuration value that cannot be used
    ├── SceneError              images, cameras or boxes that cannot be used
    ├── FormatError             a file that is damaged, foreign or of another version
    ├── DocumentError           a document, page or query that cannot be indexed or searched
    ├── LockError               an index that another process is writing
    ├── CutError                overlapping or inexact cuts of weights
    ├── SiteError               a gate that never fired or has the wrong shape
    ├── ScoreError              scores that are NaN or have the wrong shape
    ├── BudgetError             a budget nothing can satisfy
    ├── VectorError             embedding vectors that are NaN, zero or of the wrong shape
    ├── BackendError            a kernel backend that was asked for and cannot run
    └── MissingExtra            a package that an optional feature needs

Messages are one line: what happened, where (file or qualified name, shapes), what to do.
"""

from __future__ import annotations

import importlib
from typing import Any


class Compress3GError(Exception):
    """Anything compress3g raises on purpose; `str(error)` is one line meant for a person."""


class ConfigError(Compress3GError, ValueError):
    """An option or a configuration value that cannot be used."""


class SceneError(Compress3GError, ValueError):
    """Images, cameras or boxes that cannot be used."""


class FormatError(Compress3GError, ValueError):
    """A file that is damaged, foreign or of another version."""


class DocumentError(Compress3GError, ValueError):
    """A document, page or query that cannot be indexed or searched."""


class LockError(Compress3GError, RuntimeError):
    """An index that another process is writing."""


class CutError(Compress3GError, ValueError):
    """Overlapping or inexact cuts of weights."""


class SiteError(Compress3GError, RuntimeError):
    """A gate that never fired or has the wrong shape."""


class ScoreError(Compress3GError, ValueError):
    """Scores that are NaN or have the wrong shape."""


class BudgetError(Compress3GError, ValueError):
    """A budget nothing can satisfy; the message says the smallest feasible one."""


class VectorError(Compress3GError, ValueError):
    """Embedding vectors that are NaN, zero or of the wrong shape; the message names the row."""


class BackendError(Compress3GError, RuntimeError):
    """A kernel backend that was asked for and cannot run here."""


class MissingExtra(Compress3GError, ImportError):
    """A package that an optional feature needs is not installed."""


def require(module: str, *, extra: str, purpose: str) -> Any:
    """The imported `module`.

    Raises MissingExtra with the one `pip install` that mends it.

    >>> require("absent", extra="nerf", purpose="search")
    Traceback (most recent call last):
    ...
    compress3g.errors.MissingExtra: absent is needed for search: pip install 'compress3g[nerf]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{module} is needed for {purpose}: pip install 'compress3g[{extra}]'"
        ) from error
