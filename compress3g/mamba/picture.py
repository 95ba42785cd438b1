"""One picture that shows which tokens stayed, and what the model said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .checkpoint import Checkpoint
from .config import PruneConfig
from .flops import flops
from .models import family_of
from .patch import apply_patch, pruned, pruning_of
from .select import UNSCORED

_SIDE, _MARGIN, _GAP = 300, 32, 20  # pixels
_TITLE, _CAPTION = 24, 18  # font sizes
_INK, _GREY, _PAPER, _GONE = "#1c1c1e", "#6b6b70", "#ffffff", (208, 210, 216)
_DIM = 0.86  # how much of a pruned patch is the flat tone


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a model makes of a picture."""

    name: str
    share: float  # softmax probability

    def __str__(self) -> str:
        """Name and percent."""
        return f"{self.name}, {self.share:.0%}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The sheet, and what stands on it as data."""

    sheet: Image.Image
    dense: Verdict
    pruned: Verdict
    kept: tuple[int, ...]  # patches left after each prune point
    patches: int  # that there were before the last prune point's stage
    flops_share: float


def show_kept(checkpoint: Checkpoint, picture: Image.Image, name: str) -> Shown:
    """The picture as the model sees it, then after each prune point with what is gone greyed out.

    The model must be patched; it is run twice, dense and pruned.
    """
    model, look = checkpoint.model, checkpoint.preprocess
    seen = look.cropped(picture)
    tensor = look(picture)[None]
    classes = checkpoint.about.get("classes") or []
    pruning = pruning_of(model)
    assert pruning is not None
    with torch.no_grad():
        with pruned(model, None):
            dense = _verdict(model(tensor), classes)
        traced = apply_patch(model, pruning.config, trace=True)
        sparse = _verdict(model(tensor), classes)
    info = traced.info
    assert info is not None
    cls = family_of(model).has_cls
    masks = [_grid(kept[0], grid, cls) for kept, grid in zip(info.kept, info.grids, strict=True)]
    counts = tuple(int(mask.sum()) for mask in masks[1:])
    patches = [mask.numel() for mask in masks]
    cost = flops(model, pruning.config.schedule).total / flops(model).total
    panels = [_enlarged(seen)] + [_dimmed(seen, mask) for mask in masks[1:]]
    captions = [("What the model sees", f"{patches[0]} patches")] + [
        (f"After block {layer}", f"{count} of {all_} patches stay")
        for layer, count, all_ in zip(
            pruning.config.schedule.layers, counts, patches[1:], strict=True
        )
    ]
    footer = [
        f"{name}: all patches say {dense}; with {counts[-1]} left it says {sparse}, "
        f"for {cost:.0%} of the multiply-adds.",
        _rule(pruning.config),
    ]
    return Shown(
        sheet=_sheet(panels, captions, footer),
        dense=dense,
        pruned=sparse,
        kept=counts,
        patches=patches[-1],
        flops_share=cost,
    )


def _rule(c: PruneConfig) -> str:
    kind = {"drop": "Dropped", "evit": "Fused", "utr": "Matched"}.get(c.method, "Merged")
    scored = "by likeness" if c.method in UNSCORED else f"by score {c.score}"
    return (
        f"{kind} {scored}; scan alignment {c.align}, convolution alignment {c.conv_align}. "
        "Grey: no longer computed."
    )


def _verdict(logits: Float[Tensor, "1 c"], classes: Sequence[str]) -> Verdict:
    share, best = logits[0].float().softmax(0).max(0)
    index = int(best)
    name = classes[index] if index < len(classes) else f"class {index}"
    return Verdict(name=name, share=float(share))


def _grid(kept: Tensor, grid: tuple[int, int], cls: bool) -> Bool[Tensor, "h w"]:
    """Which patches are among the kept tokens, the class token left out."""
    patches = grid[0] * grid[1]
    mask = torch.zeros(patches, dtype=torch.bool)
    index = kept[kept >= 0]
    if cls:
        middle = patches // 2
        index = index[index != middle]
        index = index - (index > middle).long()
    mask[index] = True
    return mask.reshape(grid)


def _enlarged(seen: Image.Image) -> Image.Image:
    scale = _SIDE / max(seen.size)
    size = (round(seen.width * scale), round(seen.height * scale))
    sharp = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return seen.convert("RGB").resize(size, sharp)


def _dimmed(seen: Image.Image, mask: Bool[Tensor, "h w"]) -> Image.Image:
    """The enlarged picture with a flat tone over the patches that are gone."""
    large = _enlarged(seen)
    cells = Image.fromarray((mask.numpy() * 255).astype("uint8"))
    stays = cells.resize(large.size, Image.Resampling.NEAREST)
    flat = Image.new("RGB", large.size, _GONE)
    faded = Image.blend(large, flat, _DIM)
    faded.paste(large, mask=stays)
    lines = ImageDraw.Draw(faded)
    high, wide = mask.shape
    for i in range(1, wide):
        x = round(i * large.width / wide)
        lines.line([(x, 0), (x, large.height)], fill=(150, 152, 160))
    for i in range(1, high):
        y = round(i * large.height / high)
        lines.line([(0, y), (large.width, y)], fill=(150, 152, 160))
    return faded


def _widths(pen: Any, words: Sequence[str], fonts: Sequence[Any]) -> list[float]:
    return [pen.textlength(word, font=font) for word, font in zip(words, fonts, strict=True)]


def _sheet(
    panels: Sequence[Image.Image], captions: Sequence[tuple[str, str]], footer: Sequence[str]
) -> Image.Image:
    title, small = (ImageFont.load_default(size) for size in (_TITLE, _CAPTION))
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    row = max(panel.height for panel in panels)
    widest = max(ruler.textlength(line, font=small) for line in footer)
    columns = [
        max(panel.width, *(round(w) for w in _widths(ruler, words, (title, small))))
        for panel, words in zip(panels, captions, strict=True)
    ]
    across = sum(columns) + _GAP * (len(columns) - 1)
    wide = round(max(across, widest)) + 2 * _MARGIN
    head = _TITLE + _CAPTION + 20
    high = _MARGIN + head + row + 24 + len(footer) * (_CAPTION + 8) + _MARGIN
    sheet = Image.new("RGB", (wide, high), _PAPER)
    pen, x = ImageDraw.Draw(sheet), _MARGIN
    for panel, column, (name, count) in zip(panels, columns, captions, strict=True):
        pen.text((x, _MARGIN), name, font=title, fill=_INK)
        pen.text((x, _MARGIN + _TITLE + 6), count, font=small, fill=_GREY)
        sheet.paste(panel, (x, _MARGIN + head))
        x += column + _GAP
    y = _MARGIN + head + row + 24
    for line, colour in zip(footer, (_INK, _GREY), strict=True):
        pen.text((_MARGIN, y), line, font=small, fill=colour)
        y += _CAPTION + 8
    return sheet
