"""The memory behind tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """Storages of a tensor: one of a dense tensor, several of a sparse or composed one."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from storages(getattr(tensor, name))
    elif tensor.layout == torch.sparse_coo:
        yield from storages(tensor._indices())
        yield from storages(tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()):
            yield from storages(part)
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        for part in (tensor.ccol_indices(), tensor.row_indices(), tensor.values()):
            yield from storages(part)
    elif tensor.layout == torch.strided and tensor.device.type != "meta":
        yield tensor.untyped_storage()


def distinct(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    """Every storage behind the tensors once, by identity."""
    return {storage._cdata: storage for tensor in tensors for storage in storages(tensor)}
