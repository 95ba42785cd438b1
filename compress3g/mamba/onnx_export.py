"""A model, pruned or not, as an ONNX file; scans are the Scan operator."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..engine.checkpoint import atomic_write
from ..errors import require
from .export import export

_PURPOSE = "ONNX files"


def export_onnx(model: nn.Module, *, batch: int = 1) -> bytes:
    """The file for `batch` images of the model's size, input `images` and output `logits`.

    The numbers of tokens are fixed by the schedule; which tokens stay still depends on the image,
    and ties between scores go as in torch. Raises MissingExtra without onnx and onnxscript,
    ConfigError for a schedule by threshold.
    """
    require("onnx", extra="onnx", purpose=_PURPOSE)
    translations = _translations()
    program = export(model, batch=batch, scan="looped")
    with _quiet():
        found = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            custom_translation_table=translations,
            optimize=False,
            verbose=False,
        )
    assert found is not None
    file: bytes = found.model_proto.SerializeToString()
    return file


def save_onnx(path: Path, file: bytes) -> None:
    """Writes an .onnx file, whole or not at all."""
    atomic_write(path, lambda opened: opened.write(file))


@contextmanager
def _quiet() -> Any:
    """Without torch's notes on its own exporter."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators of pruning that torch's exporter does not know."""
    op = require("onnxscript", extra="onnx", purpose=_PURPOSE).opset18

    def sort(x: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
        """TopK of everything: of equal values it too has the lower index first."""
        count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)

    def searchsorted(
        row: Any, x: Any, out_int32: bool = False, right: bool = False, side: Any = None,
        sorter: Any = None,
    ) -> Any:  # fmt: skip
        """How many of the row are below each value, or at it."""
        last = op.Constant(value_ints=[-1])
        a = op.Unsqueeze(row, op.Constant(value_ints=[-2]))
        b = op.Unsqueeze(x, last)
        below = op.LessOrEqual(a, b) if right or side == "right" else op.Less(a, b)
        return op.ReduceSum(op.Cast(below, to=7), last, keepdims=0)

    return {
        torch.ops.aten.sort.stable: sort,
        torch.ops.aten.searchsorted.Tensor: searchsorted,
    }
