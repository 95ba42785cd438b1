"""Images side by side in one PNG: a row per pipeline, a column per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..engine.checkpoint import atomic_write

_SMALLEST = 64  # pixels a side: smaller images are enlarged, pixel by pixel


def write_sheet(path: Path, rows: Sequence[Float[Tensor, "n 3 h w"]]) -> None:
    """Writes rows of images in [0, 1] with a thin line between them."""
    scale = max(1, -(-_SMALLEST // rows[0].shape[-1]))
    pad = torch.nn.functional.pad
    lines = []
    for images in rows:
        large = images.detach().float().cpu().clamp(0, 1)
        large = large.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        lines.append(torch.cat([pad(image, (1, 1, 1, 1), value=0.5) for image in large], 2))
    pixels = (torch.cat(lines, 1).permute(1, 2, 0) * 255).round().byte().numpy()
    atomic_write(path, lambda file: Image.fromarray(pixels).save(file, format="PNG"))
