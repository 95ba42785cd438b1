"""Pictures to tensors and back: what a model was trained to see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import FormatError

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Resize the shorter side, crop the centre, scale to mean 0 and variance 1."""

    size: tuple[int, int]  # height and width that the model takes
    resize: int | None = None  # shorter side before the crop; None: stretched to `size`
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @classmethod
    def imagenet(cls, size: tuple[int, int], crop: float = 0.875) -> Preprocess:
        """`crop` of the shorter side, as 224 of 256 pixels."""
        mean, std = _IMAGENET
        return cls(size=size, resize=int(min(size) / crop), mean=mean, std=std)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return len(self.mean)

    def cropped(self, picture: Image.Image) -> Image.Image:
        """The part of the picture that the model sees, at the model's size."""
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        high, wide = self.size
        if self.resize is None:
            if picture.size == (wide, high):
                return picture
            return picture.resize((wide, high), Image.Resampling.BICUBIC)
        scale = self.resize / min(picture.size)
        width = max(wide, round(picture.width * scale))
        height = max(high, round(picture.height * scale))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - wide) / 2), round((height - high) / 2)
        return picture.crop((left, top, left + wide, top + high))

    def normalised(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Values in [0, 1] scaled as in training."""
        mean, std = (
            torch.tensor(v, device=pixels.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (pixels - mean) / std

    def __call__(self, picture: Image.Image) -> Float[Tensor, "c h w"]:
        """The tensor that the model takes."""
        return self.normalised(to_pixels(self.cropped(picture))[None])[0]


def to_pixels(picture: Image.Image) -> Float[Tensor, "c h w"]:
    """Values in [0, 1]."""
    array = np.array(picture, dtype=np.uint8)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array)).float() / 255


def open_picture(path: Path) -> Image.Image:
    """The decoded picture. Raises FormatError when the file is not one."""
    try:
        with Image.open(path) as found:
            found.load()
            return found.copy()
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise FormatError(f"{path} is not a picture that can be read ({error})") from None
