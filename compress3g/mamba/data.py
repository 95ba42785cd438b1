"""Labelled pictures: arrays in .npz or idx files, or a folder per class."""

from __future__ import annotations

import gzip
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ..errors import ConfigError, FormatError
from .pictures import Preprocess, open_picture

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@runtime_checkable
class Pictures(Protocol):
    """Labelled pictures, however they are stored."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each picture."""
        ...

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def tensors(self, index: Sequence[int], preprocess: Preprocess) -> Float[Tensor, "b c h w"]:
        """What the model takes, for the pictures of `index`."""
        ...


@dataclass(frozen=True, slots=True)
class Arrays:
    """Pictures in memory: uint8 (n, h, w) or (n, h, w, c)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.images)

    def part(self, index: npt.NDArray[np.int64]) -> Arrays:
        """The pictures of `index`."""
        return Arrays(self.images[index], self.labels[index])

    def tensors(self, index: Sequence[int], preprocess: Preprocess) -> Float[Tensor, "b c h w"]:
        """What the model takes; all at once when no picture has to be resized."""
        chosen = self.images[np.asarray(index, dtype=np.int64)]
        grey = chosen.ndim == 3
        if grey == (preprocess.channels == 1) and chosen.shape[1:3] == preprocess.size:
            pixels = chosen[:, None] if grey else chosen.transpose(0, 3, 1, 2)
            return preprocess.normalised(torch.from_numpy(np.ascontiguousarray(pixels)) / 255)
        return torch.stack([preprocess(Image.fromarray(one)) for one in chosen])


class Resident:
    """Pictures in the memory of a device: what `tensors` gives lies there too."""

    def __init__(self, pictures: Arrays, device: torch.device | str) -> None:
        images = pictures.images
        planes = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        self._planes = torch.from_numpy(np.ascontiguousarray(planes)).to(device)
        self.labels = pictures.labels

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def tensors(self, index: Sequence[int], preprocess: Preprocess) -> Float[Tensor, "b c h w"]:
        """What the model takes. Raises ConfigError where pictures would have to be resized."""
        shape = (preprocess.channels, *preprocess.size)
        if tuple(self._planes.shape[1:]) != shape:
            raise ConfigError(
                f"pictures on a device must have the model's shape {shape}, got "
                f"{tuple(self._planes.shape[1:])}"
            )
        rows = torch.as_tensor(np.asarray(index, dtype=np.int64)).to(self._planes.device)
        return preprocess.normalised(self._planes[rows].float() / 255)


@dataclass(frozen=True, slots=True)
class Folder:
    """Pictures in files, a folder per class; classes are numbered by name."""

    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.files)

    def tensors(self, index: Sequence[int], preprocess: Preprocess) -> Float[Tensor, "b c h w"]:
        """What the model takes; files are read anew each time."""
        return torch.stack([preprocess(open_picture(self.files[i])) for i in index])


def open_data(path: Path) -> Pictures:
    """The pictures at `path`.

    A folder with a folder per class; an .npz with `X` (n, h, w[, c]) uint8 and `Y` (n); or the file
    of images of an idx pair (`...images-idx3-ubyte[.gz]`), its labels beside it.
    Raises FormatError, naming the file, for anything else.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise FormatError(f"{path} does not exist")
    if path.suffix == ".npz":
        return _npz(path)
    if "idx" in path.name:
        return _idx_pair(path)
    raise FormatError(
        f"{path} is no data set: give a folder with a folder per class, an .npz, or an idx file"
    )


def _folder(path: Path) -> Folder:
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files, labels = [], []
    for number, folder in enumerate(classes):
        found = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _ENDINGS)
        files += found
        labels += [number] * len(found)
    if not files:
        raise FormatError(f"{path} holds no pictures: it must have a folder per class")
    return Folder(tuple(files), np.array(labels, dtype=np.int64))


def _npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as found:
            images, labels = found["X"], found["Y"]
    except KeyError:
        raise FormatError(f"{path} has no arrays X (pictures) and Y (labels)") from None
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise FormatError(f"{path} is damaged ({error})") from None
    return _arrays(images, labels, path)


def _arrays(images: npt.NDArray[Any], labels: npt.NDArray[Any], path: Path) -> Arrays:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
        raise FormatError(
            f"{path}: pictures are uint8 (n, h, w[, c]) with n labels, got {images.dtype} "
            f"{images.shape} and {labels.shape}"
        )
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return Arrays(images, labels.astype(np.int64).reshape(-1))


def _idx_pair(path: Path) -> Arrays:
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == path or not beside.exists():
        raise FormatError(f"{path}: the labels {beside.name} are not beside it")
    return _arrays(_idx(path), _idx(beside).astype(np.int64), path)


def _idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of an idx file: two zero bytes, type 8 (uint8), dimensions, sizes, values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise FormatError(f"{path} is damaged ({error})") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise FormatError(f"{path} is no idx file of bytes")
    dimensions, start = data[3], 4 + 4 * data[3]
    if len(data) < start:
        raise FormatError(f"{path} is cut short within its header")
    sizes = tuple(int(n) for n in np.frombuffer(data, ">u4", dimensions, 4))
    values = np.frombuffer(data, np.uint8, -1, start)
    if math.prod(sizes) != len(values):
        raise FormatError(f"{path} should hold {sizes} values but has {len(values)}")
    return values.reshape(sizes)


def batches(
    pictures: Pictures, preprocess: Preprocess, size: int, order: Sequence[int] | None = None
) -> Iterator[tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]]]:
    """Tensors and labels of all pictures, or those of `order`, in batches.

    Raises ConfigError when there are none.
    """
    index = range(len(pictures)) if order is None else order
    if not len(index):
        raise ConfigError("the data set has no pictures")
    for start in range(0, len(index), size):
        part = index[start : start + size]
        yield pictures.tensors(part, preprocess), torch.from_numpy(pictures.labels[list(part)])


def first(pictures: Pictures, count: int) -> Pictures:
    """The first `count` pictures, evenly spread over a folder, whose classes follow each other."""
    if isinstance(pictures, Arrays):
        return pictures.part(np.arange(min(count, len(pictures))))
    assert isinstance(pictures, Folder)
    chosen = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(np.int64)
    return Folder(tuple(pictures.files[i] for i in chosen), pictures.labels[chosen])
