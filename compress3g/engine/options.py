"""Command-line options, TOML files and Python configuration, all from one dataclass."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource

from ..errors import ConfigError

Config = TypeVar("Config")


def _plain(kind: Any) -> Any:
    """`T` of `T | None`."""
    if get_origin(kind) in (types.UnionType, typing.Union):
        return next(k for k in get_args(kind) if k is not type(None))
    return kind


class _NumberOrWord(click.ParamType):  # type: ignore[type-arg]
    """`int | Literal["auto"]` on a command line."""

    def __init__(self, number: type[int] | type[float], words: tuple[str, ...]) -> None:
        self._number, self._words = number, words
        self.name = "|".join([number.__name__, *words])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value in self._words:
            return value
        try:
            return self._number(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor {' nor '.join(self._words)}", param, ctx)


def _number_or_word(kind: Any) -> tuple[Any, tuple[str, ...]] | None:
    """Number type and words of `int | Literal["auto"]`; None for other kinds."""
    if get_origin(kind) not in (types.UnionType, typing.Union):
        return None
    words = [w for k in get_args(kind) if get_origin(k) is Literal for w in get_args(k)]
    numbers = [k for k in get_args(kind) if k in (int, float)]
    return (numbers[0], tuple(words)) if words and numbers else None


def _click_type(kind: Any) -> Any:
    if (mixed := _number_or_word(kind)) is not None:
        return _NumberOrWord(*mixed)
    kind = _plain(kind)
    if get_origin(kind) is Literal:
        return click.Choice([str(choice) for choice in get_args(kind)])
    return kind


def options_from(config: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds one option per field of a dataclass, and `--config FILE.toml`.

    The field's metadata "help" is the option's text; its default is the option's.
    """
    kinds = typing.get_type_hints(config)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(config)):
            flag, text = field.name.replace("_", "-"), field.metadata["help"]
            if _plain(kinds[field.name]) is bool:
                option = click.option(
                    f"--{flag}/--no-{flag}", default=field.default, help=text,
                    show_default=field.default is not None,
                )  # fmt: skip
            else:
                option = click.option(
                    f"--{flag}",
                    type=_click_type(kinds[field.name]),
                    default=field.default,
                    help=text,
                    show_default=field.default is not None,
                )
            command = option(command)
        return click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            help="TOML file of options; options given here win.",
        )(command)

    return decorate


def _matches(value: Any, kind: Any) -> bool:
    if (mixed := _number_or_word(kind)) is not None:
        return value in mixed[1] or _matches(value, mixed[0])
    kind = _plain(kind)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def read_toml(
    config: type[Any], file: Path, *, table: str = "", tables: Collection[str] = ()
) -> dict[str, Any]:
    """The values of a TOML file, checked against the fields of `config`.

    table: the one to read in a file of tables, of those called `tables`; a file without any is read
    as a whole, and one without this table holds nothing.
    Raises ConfigError naming file and key for what is missing, misspelt or of the wrong type.
    """
    values = _parsed(file)
    found = {key for key, value in values.items() if isinstance(value, dict)}
    if tables and found:
        if wrong := [key for key in values if key not in found or key not in tables]:
            raise ConfigError(f"{file}: {wrong[0]} is none of the tables {', '.join(tables)}")
        values = values.get(table, {})
    kinds = typing.get_type_hints(config)
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f"{file}: no option {key!r}; known are {', '.join(sorted(kinds))}")
        if not _matches(value, kinds[key]):
            raise ConfigError(f"{file}: {key} = {value!r} is not of the kind {kinds[key]}")
    return values


def tables_of(file: Path) -> set[str]:
    """Names of the tables of a TOML file. Raises ConfigError."""
    return {key for key, value in _parsed(file).items() if isinstance(value, dict)}


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


def resolve(
    config: type[Config],
    options: Mapping[str, Any],
    file: Path | None,
    *,
    preset: Config | None = None,
    one_of: Collection[str] = (),
    table: str = "",
    tables: Collection[str] = (),
) -> Config:
    """This call's configuration: defaults or a preset, then the TOML file, then what was typed.

    one_of: options that exclude each other; typing one of them overrules all of them in the file.
    table, tables: as in `read_toml`.
    """
    context = click.get_current_context()
    values = dict(options)
    typed = {
        key for key in options if context.get_parameter_source(key) is ParameterSource.COMMANDLINE
    }
    if typed & set(one_of):
        typed |= set(one_of)
    below = dataclasses.asdict(typing.cast(Any, preset)) if preset is not None else {}
    below |= read_toml(config, file, table=table, tables=tables) if file else {}
    for key, value in below.items():
        if key not in typed:
            values[key] = value
    return config(**values)


def to_toml(config: Any) -> str:
    """TOML that `--config` reads back into an equal configuration; unset fields are left out."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            # JSON's numbers, booleans and escaped strings are TOML's too.
            lines.append(f"{field.name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
