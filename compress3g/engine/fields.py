"""Fields of a configuration: what each is for, and which values it can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ..errors import ConfigError


def option(default: Any, help: str) -> Any:
    """A field of a dataclass with its default and the text of its option."""
    return field(default=default, metadata={"help": help})


def check_ranges(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises ConfigError naming the first option outside its range, both ends included.

    None is no value and passes; NaN is in no range.

    >>> from types import SimpleNamespace
    >>> check_ranges(SimpleNamespace(keep_last=0.5), {"keep_last": (1, 9)})
    Traceback (most recent call last):
    ...
    compress3g.errors.ConfigError: --keep-last 0.5 is out of range: give 1 to 9
    """
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} {value} is out of range: give {least:g} to {most:g}")
