"""Where messages go: stderr, plainly in a pipe, in colour on a terminal."""

from __future__ import annotations

import logging
import sys


def configure(verbosity: int = 0) -> None:
    """Send the package's log to stderr: progress and warnings, with -v everything."""
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(
            console=Console(stderr=True), show_time=False, show_path=False, markup=False
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("compress3g")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbosity else logging.INFO)
