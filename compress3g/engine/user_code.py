"""Functions that a user names on the command line as MODULE:FUNCTION."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigError


def function_of(target: str) -> Callable[..., Any]:
    """The function of FILE.py:FUNCTION or package.module:FUNCTION, `guarded`.

    Raises ConfigError when there is no such thing or it cannot be imported.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{target!r} is not MODULE:FUNCTION, as in bench.py:step or pkg.mod:step")
    module = _module(place)
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{place} has no function {name}: it has {', '.join(known) or 'none'}")
    return guarded(function, target)


def guarded(function: Callable[..., Any], target: str) -> Callable[..., Any]:
    """The function, with whatever it raises as one line: it is the user's, not a bug of ours."""

    def run(*args: Any) -> Any:
        try:
            return function(*args)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{target} raised {_said(error)}") from error

    return run


def _module(name: str) -> ModuleType:
    """The module of that name, or of that .py file. ConfigError says why there is none."""
    try:
        if name.endswith(".py"):
            return _file(Path(name))
        if "" not in sys.path:  # an installed script does not look where the user stands
            sys.path.insert(0, "")
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"cannot import {name}: {_said(error)}") from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("there is no such file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    unique = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ConfigError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def _said(error: BaseException) -> str:
    words = " ".join(str(error).split())
    if isinstance(error, ConfigError):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
