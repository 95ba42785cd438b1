"""Rows of files are what was written into them, whatever their texts hold."""

from __future__ import annotations

import csv
import json

import pytest

from compress3g.errors import ConfigError
from compress3g.peft.data import read_pairs

TEXTS = ['a 12" screen', '"Stop', 'no "end', "one\u2028line", "next\x85one\x0cpage", "the last"]


def whole(texts, **options):
    """A tokenizer that leaves texts as they are."""
    return {"input_ids": texts}


def pairs(file):
    return [(row["query"], row["passage"]) for row in read_pairs(file, whole, 8).items]


def test_quotes_of_a_tsv_are_letters(tmp_path):
    rows = list(zip(TEXTS, reversed(TEXTS), strict=True))
    file = tmp_path / "a.tsv"
    file.write_text("query\tpassage\n" + "".join(f"{q}\t{p}\n" for q, p in rows))
    assert pairs(file) == rows


def test_a_csv_keeps_lines_and_quotes_inside_its_fields(tmp_path):
    rows = [(text, "two\nlines, and\n\na fourth") for text in TEXTS]
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("query", "passage"), *rows])
    assert pairs(file) == rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_feeds_end_lines_of_jsonl(end, tmp_path):
    rows = [(text, text.upper()) for text in TEXTS]
    lines = [json.dumps({"query": q, "passage": p}, ensure_ascii=False) for q, p in rows]
    file = tmp_path / "a.jsonl"
    file.write_bytes("".join(line + end for line in lines).encode())
    assert pairs(file) == rows


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.tsv", 'query\tpassage\n"x\ty\n\nz\t\n', 4),
        ("a.csv", 'query,passage\n"x\ny",z\n\n"u\nv",\n', 5),
        ("a.csv", 'query,passage\nx,y\n"z,u\nv,w\n', 3),
        ("a.jsonl", '{"query": "\u2028", "passage": "x"}\n\n{"query": "x"}\n', 3),
    ],
    ids=["tsv", "csv", "open quote", "jsonl"],
)
def test_a_bad_row_is_named_by_its_first_line(name, content, line, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"{name}:{line} "):
        pairs(tmp_path / name)
