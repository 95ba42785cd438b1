"""Pages of vectors in one long stream, and the checks that every operation on them shares."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from ..errors import ConfigError
from ._library import address

Array = Tensor | np.ndarray
CODES = (torch.uint8, torch.uint16)


def as_tensor(array: Array, name: str, dtypes: Sequence[torch.dtype], ndim: int) -> Tensor:
    """The same memory as a tensor; the caller keeps `array` alive while it uses that.

    Read-only arrays (memory maps) are welcome: nothing here writes.
    Raises ConfigError on another dtype, another number of axes, or gaps between elements.
    """
    if isinstance(array, np.ndarray):
        array = _borrow(array) if array.flags.c_contiguous else _no_gaps(name, array.shape)
    if array.dtype not in dtypes or array.ndim != ndim:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ConfigError(
            f"{name} must be {wanted} with {ndim} axes, got "
            f"{str(array.dtype).removeprefix('torch.')} of shape {tuple(array.shape)}"
        )
    if array.numel() == 0:
        return array.new_empty(array.shape)  # with strides that can be reinterpreted
    return array if array.is_contiguous() else _no_gaps(name, array.shape)


def _no_gaps(name: str, shape: Sequence[int]) -> Tensor:
    raise ConfigError(
        f"{name} of shape {tuple(shape)} is not contiguous: pass a contiguous copy of it"
    )


def _borrow(array: np.ndarray) -> Tensor:
    if not array.flags.writeable and array.size:  # torch warns of read-only memory
        memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
        array = np.ndarray(array.shape, array.dtype, buffer=memoryview(memory).cast("B"))
    try:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError):
        raise ConfigError(f"arrays of {array.dtype} cannot be used: convert them") from None


class _Pages(ctypes.Structure):
    _fields_ = [
        ("offset", ctypes.c_void_p),
        ("page", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("vectors", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("wide", ctypes.c_int64),
    ]


@dataclass(frozen=True, slots=True)
class Pages:
    """Page p owns the vectors offsets[p] .. offsets[p+1]-1; `selected` pages, None for all.

    `codes` holds one row number below `rows` per vector, or None.
    """

    offsets: Int[Tensor, "ends"]
    selected: Int[Tensor, "n"] | None
    codes: Integer[Tensor, "v"] | None
    vectors: int
    rows: int

    @staticmethod
    def of(
        offsets: Array,
        pages: Array | None,
        *,
        codes: Array | None = None,
        vectors: int | None = None,
        rows: int = 0,
    ) -> Pages:
        """Checks all that costs nothing; `check` and the C code look at the values.

        Raises ConfigError on wrong dtypes, shapes or devices, or when the last offset is not the
        number of vectors.
        """
        offset = as_tensor(offsets, "offsets", (torch.int64,), 1)
        selected = None if pages is None else as_tensor(pages, "pages", (torch.int64,), 1)
        code = None if codes is None else as_tensor(codes, "codes", CODES, 1)
        if vectors is None:
            vectors = 0 if code is None else len(code)
        if code is not None and len(code) != vectors:
            raise ConfigError(f"{len(code)} codes for {vectors} vectors")
        if len(offset) == 0 or int(offset[0]) != 0 or int(offset[-1]) != vectors:
            ends = f"{int(offset[0])} .. {int(offset[-1])}" if len(offset) else "none"
            raise ConfigError(f"offsets must run from 0 to {vectors} vectors, got {ends}")
        devices = {t.device for t in (offset, selected, code) if t is not None}
        if len(devices) > 1:
            raise ConfigError(
                f"offsets, pages and codes lie on {len(devices)} devices: move them to one"
            )
        return Pages(offset, selected, code, vectors, rows)

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.selected is None else len(self.selected)

    def check(self) -> None:
        """Looks at every value. Raises ConfigError on the first that would lead astray."""
        count = len(self.offsets) - 1
        falling = (self.offsets[1:] < self.offsets[:-1]).nonzero()
        if len(falling):
            raise ConfigError(f"offsets fall after page {int(falling[0])}: the index is damaged")
        if self.selected is not None:
            outside = self.selected[(self.selected < 0) | (self.selected >= count)]
            if len(outside):
                raise ConfigError(f"page {int(outside[0])} does not exist: there are {count} pages")
        if self.codes is not None and len(self.codes):
            most = int(self.codes.to(torch.int32).max())
            if most >= self.rows:
                raise ConfigError(
                    f"code {most} in a table of {self.rows} rows: codes and codebook do not belong "
                    "together"
                )

    def rows_of(self, vector: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Row number of each of these vectors."""
        codes = self.codes
        assert codes is not None
        if codes.dtype != torch.uint16:
            return codes[vector].to(torch.int64)
        # On a GPU torch has no indexing of unsigned words.
        return codes.view(torch.int16)[vector].to(torch.int64) & 0xFFFF

    def refuse(self) -> None:
        """Raises ConfigError after C has refused a page, with the reason `check` finds."""
        self.check()
        raise ConfigError("pages changed while they were read: search again")

    def struct(self) -> ctypes.Structure:
        """The same for C; keep it alive during the call."""
        codes = self.codes
        return _Pages(
            address(self.offsets),
            address(self.selected),
            address(codes, CODES),
            self.vectors,
            len(self.offsets) - 1,
            self.rows,
            int(codes is not None and codes.dtype == torch.uint16),
        )

    def blocks(self, limit: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Results in slices of about `limit` vectors, each with the vectors' page and number.

        Yields (slice of the results, result of each vector counted from the slice's first, vector).
        """
        page = self.selected
        begin = self.offsets[:-1] if page is None else self.offsets[page]
        count = (self.offsets[1:] if page is None else self.offsets[page + 1]) - begin
        ends = count.cumsum(0)
        low = 0
        while low < len(self):
            done = int(ends[low - 1]) if low else 0
            high = max(low + 1, int(torch.searchsorted(ends, done + limit, right=True)))
            n = count[low:high]
            owner = torch.repeat_interleave(n)
            start = begin[low:high] - (ends[low:high] - n - done)
            vector = torch.arange(len(owner), device=owner.device) + start[owner]
            yield slice(low, high), owner, vector
            low = high
