"""The memory behind tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = (Tensor, torch.nn.Parameter)  # of these types is nearly everything an operator sees


def storages(tensor: Tensor) -> Iterable[torch.UntypedStorage]:
    """Storages of a tensor: one of a dense tensor, several of a sparse or composed one."""
    if type(tensor) not in _PLAIN and is_traceable_wrapper_subclass(tensor):
        return [
            s for name in tensor.__tensor_flatten__()[0] for s in storages(getattr(tensor, name))
        ]
    if tensor.layout == torch.strided:
        return () if tensor.is_meta else (tensor.untyped_storage(),)
    return [s for part in _parts(tensor) for s in storages(part)]


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Dense tensors of a sparse one; none of a layout that is not known."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()


def distinct(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    """Every storage behind the tensors once, by identity."""
    return {storage._cdata: storage for tensor in tensors for storage in storages(tensor)}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors among the arguments or results of an operator: lists and tuples nest, no more.

    (torch's pytree knows every container, and showed in the tracker's time.)
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
