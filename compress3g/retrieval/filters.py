"""`--where`: a small language over metadata, parsed here and handed to SQLite as parameters.

    condition  := term (("and" | "or") term)*          "and" binds tighter than "or"
    term       := ["not"] ( "(" condition ")" | comparison )
    comparison := key ("=" | "!=" | "<" | "<=" | ">" | ">=") value
                | key ["not"] "in" "(" value ("," value)* ")"
                | key ["not"] "like" string            % any text, _ any character, ASCII case-blind
    key        := name of a metadata key, "quoted" if it is not a plain word; `doc` is the path of
                  the document, `page` the number of the page, from 1
    value      := number | 'string' with '' for ' | true | false

A comparison with a key a document lacks, or whose value is of another type, is false.
Not one character of the text becomes SQL: keys and values are parameters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..errors import ConfigError
from .catalog import Catalog, DocumentRow

_MAX_CHARACTERS, _MAX_DEPTH, _MAX_COMPARISONS = 20_000, 40, 200
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"[^"]+")
    | (?P<word>[^\W\d][\w.-]*)
    | (?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_WORDS = {"and", "or", "not", "in", "like", "true", "false"}
_SIGNS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


@dataclass(frozen=True, slots=True)
class Where:
    """A condition over documents d and, where `page` occurs in it, pages p; and its parameters."""

    sql: str
    parameters: tuple[Any, ...]
    of_pages: bool

    @property
    def pages(self) -> str:
        """A statement that selects the numbers of the pages that pass."""
        if self.of_pages:
            return f"SELECT p.page FROM pages p JOIN documents d USING (document) WHERE {self.sql}"
        # One look at a document's metadata, not one for each of its pages.
        inner = f"SELECT d.document FROM documents d WHERE {self.sql}"
        return f"SELECT page FROM pages WHERE document IN ({inner})"

    @property
    def documents(self) -> str:
        """A statement that selects the numbers of the documents of which a page passes."""
        joined = " JOIN pages p USING (document)" if self.of_pages else ""
        return f"SELECT d.document FROM documents d{joined} WHERE {self.sql}"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse_where(text: str) -> Where:
    """SQL with question marks for `text`, and what stands for them.

    Raises ConfigError with the position of whatever is not in the grammar above.

    >>> parse_where("lang in ('en', 'de')").parameters
    ('$."lang"', 'text', '$."lang"', 'en', 'de')
    """
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"--where has {len(text)} characters, at most {_MAX_CHARACTERS} are read")
    parser = _Parser(text)
    sql = parser.condition(0)
    parser.expect_end()
    return Where(sql, tuple(parser.parameters), parser.of_pages)


def _tokens(text: str) -> Iterator[_Token]:
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or "\0" in match.group():
            raise ConfigError(f"--where: cannot read {text[at:].strip()[:20]!r} at character {at}")
        kind = str(match.lastgroup)
        word, start = match.group(kind), match.start(kind)
        if kind == "word" and word.lower() in _WORDS:
            kind, word = "keyword", word.lower()
        yield _Token(kind, word, start)
        at = match.end()
    yield _Token("end", "the end", end)


class _Parser:
    """Recursive descent; `parameters` are in the order of the question marks."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0
        self._comparisons = 0
        self.parameters: list[Any] = []
        self.of_pages = False

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _accept(self, text: str) -> bool:
        token = self._peek()
        if token.kind in ("keyword", "sign") and token.text == text:
            self._take()
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._wrong(f"{text!r}")

    def _wrong(self, wanted: str) -> ConfigError:
        token = self._peek()
        return ConfigError(
            f"--where: expected {wanted}, found {token.text[:20]!r} at character {token.at}"
        )

    def expect_end(self) -> None:
        if self._peek().kind != "end":
            raise self._wrong("'and', 'or' or the end")

    def condition(self, depth: int) -> str:
        terms = [self._conjunction(depth)]
        while self._accept("or"):
            terms.append(self._conjunction(depth))
        return terms[0] if len(terms) == 1 else f"({' OR '.join(terms)})"

    def _conjunction(self, depth: int) -> str:
        terms = [self._term(depth)]
        while self._accept("and"):
            terms.append(self._term(depth))
        return terms[0] if len(terms) == 1 else f"({' AND '.join(terms)})"

    def _term(self, depth: int) -> str:
        if depth > _MAX_DEPTH:
            raise ConfigError(f"--where: more than {_MAX_DEPTH} nested parentheses or nots")
        if self._accept("not"):
            return f"(NOT {self._term(depth + 1)})"
        if self._accept("("):
            inner = self.condition(depth + 1)
            self._expect(")")
            return inner
        return self._comparison()

    def _comparison(self) -> str:
        self._comparisons += 1
        if self._comparisons > _MAX_COMPARISONS:
            raise ConfigError(f"--where: more than {_MAX_COMPARISONS} comparisons")
        token = self._peek()
        if token.kind not in ("word", "quoted"):
            raise self._wrong("a metadata key")
        key = self._take().text.strip('"')
        if self._peek().kind == "sign" and self._peek().text in _SIGNS:
            sign = _SIGNS[self._take().text]
            return self._test(key, sign, [self._value()])
        inverted = "NOT " if self._accept("not") else ""
        if self._accept("in"):
            self._expect("(")
            values = [self._value()]
            while self._accept(","):
                values.append(self._value())
            self._expect(")")
            kinds = {_type(v) for v in values}
            tests = [
                self._test(key, "IN", [v for v in values if _type(v) == k]) for k in sorted(kinds)
            ]
            return f"({inverted}({' OR '.join(tests)}))"
        if self._accept("like"):
            value = self._value()
            if not isinstance(value, str):
                raise ConfigError(f"--where: like needs a 'string', not {value!r}")
            return f"({inverted}{self._test(key, 'LIKE', [value])})"
        raise self._wrong("a comparison such as = or in")

    def _value(self) -> Any:
        token = self._peek()
        if token.kind == "string":
            return self._take().text[1:-1].replace("''", "'")
        if token.kind == "number":
            text = self._take().text
            return int(text) if text.lstrip("+-").isdigit() and len(text) < 19 else float(text)
        if token.text in ("true", "false") and token.kind == "keyword":
            return self._take().text == "true"
        raise self._wrong("a number, a 'string', true or false")

    def _test(self, key: str, sign: str, values: list[Any]) -> str:
        marks = f"({','.join('?' * len(values))})" if sign == "IN" else "?"
        kind = _type(values[0])
        if key == "page" or key == "doc":
            wanted = "number" if key == "page" else "text"
            if kind != wanted:
                raise ConfigError(f"--where: {key} is a {wanted}, {values[0]!r} is not")
            if key == "page":
                self.of_pages = True
                self.parameters += values
                return f"((p.number + 1) {sign} {marks})"
            # Paths are kept as bytes, and compared as such.
            self.parameters += [os.fsencode(v) for v in values]
            if sign == "LIKE":
                return "(CAST(d.path AS TEXT) LIKE CAST(? AS TEXT))"
            return f"(d.path {sign} {marks})"
        path = f'$."{key}"'
        if any("\ud800" <= c <= "\udfff" for v in (key, *values) for c in str(v)):
            raise ConfigError("--where: only `doc` can be compared with bytes that are no UTF-8")
        self.parameters += [path, *_TYPES[kind], path, *values]
        types = ",".join("?" * len(_TYPES[kind]))
        # Without the type SQLite would rank every string above every number.
        known = f"coalesce(json_type(d.meta, ?), '') IN ({types})"
        return f"({known} AND json_extract(d.meta, ?) {sign} {marks})"


_TYPES = {"number": ("integer", "real"), "text": ("text",), "truth": ("true", "false")}


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "truth"
    return "text" if isinstance(value, str) else "number"


def pages_where(catalog: Catalog, text: str) -> Int64[np.ndarray, "n"]:
    """Ascending numbers of the pages that pass, deleted ones included. Raises ConfigError."""
    where = parse_where(text)
    return np.unique(
        np.asarray([page for (page,) in catalog.query(where.pages, where.parameters)], np.int64)
    )


def documents_where(catalog: Catalog, text: str) -> list[DocumentRow]:
    """Living documents of which a page passes. Raises ConfigError."""
    where = parse_where(text)
    return catalog.documents(f"document IN ({where.documents})", where.parameters)
