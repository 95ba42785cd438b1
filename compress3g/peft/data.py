"""Texts to tune with: CSV, TSV or JSONL with text and label, or plain text for language models."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows of text, and the class of each; labels holds the classes' names, none for plain text."""

    rows: list[tuple[str, int]]
    labels: tuple[str, ...]

    def split(self, share: float, seed: int) -> tuple[Texts, Texts]:
        """The same rows in two parts, the second of about `share` of them, at least one."""
        order = random.Random(seed).sample(range(len(self.rows)), len(self.rows))
        held = max(1, round(share * len(self.rows)))
        first, second = (sorted(part) for part in (order[held:], order[:held]))
        return (
            Texts([self.rows[i] for i in first], self.labels),
            Texts([self.rows[i] for i in second], self.labels),
        )


def read_texts(file: Path, labels: Sequence[str] | None = None) -> Texts:
    """Rows of a .csv or .tsv file with columns text and label, or of .jsonl with these keys.

    labels: the classes that are known already. Raises ConfigError naming file and line.
    """
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: give a .csv, .tsv or .jsonl file")
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text") from None
    if file.suffix == ".jsonl":
        pairs = [_json(file, i, line) for i, line in enumerate(content.splitlines(), 1) if line]
    elif file.suffix in _DELIMITERS:
        pairs = _table(file, content)
    else:
        raise ConfigError(f"{file}: give a .csv, .tsv or .jsonl file with text and label")
    if len(pairs) < 2:
        raise ConfigError(f"{file} holds {len(pairs)} rows: give more")
    names = tuple(labels) if labels is not None else tuple(sorted({label for _, label in pairs}))
    if len(names) < 2:
        raise ConfigError(f"{file} has one label only, {names[0]!r}: there is nothing to learn")
    for text, label in pairs:
        if label not in names:
            raise ConfigError(f"{file}: label {label!r} of {text[:40]!r} is none of {names}")
    return Texts([(text, names.index(label)) for text, label in pairs], names)


def _json(file: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        return str(row["text"]), str(row["label"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{file}:{number} is no object with text and label") from None


def _table(file: Path, content: str) -> list[tuple[str, str]]:
    rows = csv.DictReader(content.splitlines(), delimiter=_DELIMITERS[file.suffix])
    if not {"text", "label"} <= set(rows.fieldnames or ()):
        raise ConfigError(f"{file}: its first line names no columns text and label")
    pairs = []
    for number, row in enumerate(rows, 2):
        if not row["text"] or not row["label"]:
            raise ConfigError(f"{file}:{number} has no text or no label")
        pairs.append((row["text"], row["label"]))
    return pairs


class Encoded:
    """Texts as a Trainer wants them: token ids and labels, padded by the batch."""

    def __init__(self, texts: Texts, tokenizer: Any, length: int) -> None:
        made = tokenizer([text for text, _ in texts.rows], truncation=True, max_length=length)
        self._ids, self._texts, self._tokenizer = made["input_ids"], texts, tokenizer

    def __len__(self) -> int:
        """How many rows."""
        return len(self._ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self._ids[i], "labels": self._texts.rows[i][1]}


def collate(tokenizer: Any, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A padded batch of rows with labels."""
    import torch

    made = tokenizer.pad([{"input_ids": r["input_ids"]} for r in rows], return_tensors="pt")
    return {**made, "labels": torch.tensor([r["labels"] for r in rows])}
