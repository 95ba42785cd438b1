"""Files to tune with: texts and their classes, plain text, or queries and their passages."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples as token ids; labels holds the names of the classes, where there are classes."""

    items: list[dict[str, Any]]
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        """How many."""
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.items[i]

    def split(self, share: float, seed: int) -> tuple[Rows, Rows]:
        """The same samples in two parts, the second of about `share` of them, at least one."""
        order = random.Random(seed).sample(range(len(self)), len(self))
        held = max(1, round(share * len(self)))
        first, second = (sorted(part) for part in (order[held:], order[:held]))
        return tuple(  # type: ignore[return-value]
            replace(self, items=[self.items[i] for i in part]) for part in (first, second)
        )


def read_classes(
    file: Path, tokenizer: Any, length: int, labels: Sequence[str] | None = None
) -> Rows:
    """Rows of a .csv or .tsv file with columns text and label, or of .jsonl with these keys.

    labels: the classes that are known already. Raises ConfigError naming file and line.
    """
    pairs = _table(file, ("text", "label"))
    names = tuple(labels) if labels is not None else tuple(sorted({label for _, label in pairs}))
    if len(names) < 2:
        raise ConfigError(f"{file} has one label only, {names[0]!r}: there is nothing to learn")
    for text, label in pairs:
        if label not in names:
            raise ConfigError(f"{file}: label {label!r} of {text[:40]!r} is none of {names}")
    ids = tokenizer([text for text, _ in pairs], truncation=True, max_length=length)["input_ids"]
    items = [
        {"input_ids": row, "labels": names.index(label)}
        for row, (_, label) in zip(ids, pairs, strict=True)
    ]
    return Rows(items, names)


def read_plain(
    file: Path, tokenizer: Any, length: int, labels: Sequence[str] | None = None
) -> Rows:
    """Blocks of `length` tokens of a .txt file, or of the texts of a table or .jsonl in a row.

    Rows of a table or .jsonl end with the tokenizer's end of text, if it has one; what is left
    after the last whole block is not used. Raises ConfigError when there are fewer than two blocks.
    """
    if file.suffix == ".txt":
        texts = _content(file).splitlines(keepends=True)
    else:
        end = getattr(tokenizer, "eos_token", None) or "\n"
        texts = [text + end for (text,) in _table(file, ("text",))]
    made = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    ids = [token for row in made for token in row]
    blocks = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    if len(blocks) < 2:
        raise ConfigError(
            f"{file} holds {len(ids):,} tokens: give at least two blocks of --length {length}"
        )
    return Rows([{"input_ids": block} for block in blocks])


def read_pairs(
    file: Path, tokenizer: Any, length: int, labels: Sequence[str] | None = None
) -> Rows:
    """Rows of a table or .jsonl with query and passage, the passage being the query's answer."""
    pairs = _table(file, ("query", "passage"))
    made = [
        tokenizer(list(side), truncation=True, max_length=length)["input_ids"]
        for side in zip(*pairs, strict=True)
    ]
    return Rows([{"query": q, "passage": p} for q, p in zip(*made, strict=True)])


def _content(file: Path) -> str:
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: give a file of texts")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text") from None


def _table(file: Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The columns of every row of a .csv, .tsv or .jsonl file, at least two rows."""
    wanted = " and ".join(columns)
    if file.suffix not in (".jsonl", *_DELIMITERS):
        raise ConfigError(f"{file}: give a .csv, .tsv or .jsonl file with {wanted}")
    content = _content(file)
    if file.suffix == ".jsonl":
        lines = enumerate(content.split("\n"), 1)  # U+2028 ends no line of JSON
        rows = [_json(file, i, line, columns) for i, line in lines if line.strip()]
    else:
        rows = _delimited(file, content, columns)
    if len(rows) < 2:
        raise ConfigError(f"{file} holds {len(rows)} rows: give more")
    return rows


def _json(file: Path, number: int, line: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    try:
        row = json.loads(line)
        return tuple(str(row[c]) for c in columns)
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{file}:{number} is no object with {' and '.join(columns)}") from None


def _delimited(file: Path, content: str, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The columns of every row; quotes are those of a .csv, and letters like others in a .tsv."""
    reader = csv.reader(
        io.StringIO(content, newline=""),
        delimiter=_DELIMITERS[file.suffix],
        quoting=csv.QUOTE_MINIMAL if file.suffix == ".csv" else csv.QUOTE_NONE,
    )
    names = next(reader, [])
    if not set(columns) <= set(names):
        raise ConfigError(f"{file}: its first line names no columns {' and '.join(columns)}")
    rows, first = [], reader.line_num + 1  # a quoted field may hold several lines
    for fields in reader:
        row = dict(zip(names, fields, strict=False))
        if fields and not all(row.get(c) for c in columns):
            raise ConfigError(f"{file}:{first} has no {' or no '.join(columns)}")
        if fields:
            rows.append(tuple(row[c] for c in columns))
        first = reader.line_num + 1
    return rows
