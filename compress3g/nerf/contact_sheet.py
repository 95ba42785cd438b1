"""One picture that shows what a run did: views side by side, errors, and slices of the saliency."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import ConfigError

Axis = Literal["x", "y", "z"]
Picture = Float[Tensor, "_ _ 3"]

# (lightness, chroma, hue in degrees) of OKLCh. Lightness rises evenly from almost black to almost
# white, so equal steps of the value look equally large, in grey print and to colour-blind eyes too.
_POINTS = (
    (0.160, 0.055, 285.0),
    (0.322, 0.120, 300.0),
    (0.484, 0.160, 350.0),
    (0.646, 0.165, 40.0),
    (0.808, 0.150, 80.0),
    (0.970, 0.070, 105.0),
)

_WIDTH = 1400  # pixels; what a README page shows without a scroll bar
_CELL = 400  # pixels; the most a picture grows to without being asked
_MARGIN, _GAP = 36, 18
_NAME, _CAPTION, _LABEL = 28, 20, 17  # font sizes
_INK, _GREY, _RULE, _PAPER = "#1c1c1e", "#6b6b70", "#dcdce0", "#ffffff"
# The font that Pillow ships lacks these; a box in their place would look broken.
_SPELT = str.maketrans(
    {"×": "x", "−": "-", "–": "-", "—": "-", "²": "^2", "³": "^3", "→": "->", "≤": "<=", "≥": ">="}
    | {
        "γ": "gamma",
        "σ": "sigma",
        "α": "alpha",
        "ρ": "rho",
        "τ": "tau",
        "\u202f": " ",
        "\u2009": " ",
    }
)


@dataclass(frozen=True, slots=True)
class Column:
    """Pictures one below the other, a caption under the column's name, a label under each."""

    pictures: Sequence[Picture]
    caption: str = ""
    labels: Sequence[str] = ()


def contact_sheet(
    columns: Mapping[str, Sequence[Picture] | Column],
    *,
    footer: Mapping[str, str],
    scale: int | None = None,
) -> Image.Image:
    """One white sheet of named columns of pictures with values in [0, 1].

    Row i holds the i-th picture of every column; columns may differ in length, pictures in size:
    each fills its cell without being distorted. A caption may have several lines. footer: names
    and values for the last line, such as the scene and the number of steps. scale: pixels of the
    sheet per pixel of the first picture; None makes cells as large as 1400 pixels of width allow.
    Raises ConfigError when there is no picture or scale is below 1.

    >>> grey = torch.full((32, 32, 3), 0.5)
    >>> contact_sheet({"truth": [grey], "ours": [grey]}, footer={"scene": "grey"}, scale=4).width
    346
    """
    named = {n: c if isinstance(c, Column) else Column(c) for n, c in columns.items()}
    if not any(len(c.pictures) for c in named.values()):
        raise ConfigError("a contact sheet needs at least one picture: every column is empty")
    if scale is not None and scale < 1:
        raise ConfigError(f"a contact sheet's scale is {scale}: it must be at least 1")
    layout = _Layout.of(named, footer, scale)
    sheet = Image.new("RGB", (layout.width, layout.height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (name, column) in enumerate(named.items()):
        _draw_column(sheet, draw, layout, (layout.left(i), name, column))
    y = layout.footer_top
    if footer:
        draw.line((_MARGIN, y, layout.width - _MARGIN - 1, y), fill=_RULE)
    for line in _flow(footer, layout.width - 2 * _MARGIN):
        y += _line(_CAPTION)
        for x, text, colour in line:
            draw.text((_MARGIN + x, y), text, fill=colour, font=_font(_CAPTION), anchor="ls")
    return sheet


def saliency_slice(
    volume: Float[Tensor, "r r r"], axis: Axis = "z", index: int | None = None
) -> Float[Tensor, "r r 3"]:
    """A plane through values in [0, 1] that are indexed [z, y, x], in colour: dark 0, bright 1.

    The plane at `index` along `axis`; None takes the one with the longest outline, see
    `telling_index`. It stands as one would look at it: z up for the planes across x and y, y up
    for the plane across z, the other axis to the right.
    Raises ConfigError when the index lies outside.

    >>> saliency_slice(torch.eye(8).expand(8, 8, 8)).shape
    torch.Size([8, 8, 3])
    """
    index = telling_index(volume, axis) if index is None else index
    if not 0 <= index < volume.shape[0]:
        raise ConfigError(f"slice {axis}={index} is outside a volume of {volume.shape[0]} per axis")
    return colour_map(volume.select("zyx".index(axis), index).flip(0))


def telling_index(volume: Float[Tensor, "r r r"], axis: Axis = "z") -> int:
    """The plane across `axis` with the longest outline, that is, the largest total variation.

    A plane through a hollow thing crosses two outlines, one along its wall only one, and the middle
    plane may miss scattered things altogether. Equal planes: the one nearest to the middle.
    """
    planes = volume.detach().double().movedim("zyx".index(axis), 0)
    outline = planes.diff(dim=1).abs().sum((1, 2)) + planes.diff(dim=2).abs().sum((1, 2))
    middle = (len(planes) - 1) / 2
    best = (outline >= outline.max() * (1 - 1e-9)).nonzero()[:, 0].tolist()
    return int(min(best, key=lambda i: abs(i - middle))) if best else len(planes) // 2


def slice_column(volume: Float[Tensor, "r r r"], caption: str = "", rows: int = 3) -> Column:
    """Slices of a saliency grid [z, y, x], each across another axis, with their places as labels.

    Slices and not maximum projections: from outside a hollow thing and a solid one project alike.
    Raises ConfigError unless 1 <= rows <= 3.
    """
    if not 1 <= rows <= 3:
        raise ConfigError(f"a column has 1 to 3 slices, one per axis, not {rows}")
    axes: tuple[Axis, ...] = ("y", "x", "z")  # upright ones first
    places = {axis: telling_index(volume, axis) for axis in axes[:rows]}
    pictures = [saliency_slice(volume, axis, index) for axis, index in places.items()]
    size = volume.shape[0]
    return Column(pictures, caption, [f"{a} = {i + 1} of {size}" for a, i in places.items()])


def error_map(
    a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"], *, limit: float = 0.25
) -> Float[Tensor, "h w 3"]:
    """How far two images are apart at each pixel, in colour: dark 0, bright `limit` or more.

    The absolute difference of the clipped images, mean over channels, same unit as the images.
    Raises ConfigError unless limit is positive.

    >>> error_map(torch.zeros(4, 4, 3), torch.zeros(4, 4, 3)).shape
    torch.Size([4, 4, 3])
    """
    if not limit > 0:
        raise ConfigError(f"an error map's limit is {limit}: it must be positive")
    return colour_map((a.clamp(0, 1) - b.clamp(0, 1)).abs().mean(-1) / limit)


def colour_map(value: Float[Tensor, "*n"]) -> Float[Tensor, "*n 3"]:
    """Colours of values in [0, 1], dark to bright; values outside are clipped, NaN counts as 0.

    Interpolated linearly between six points in OKLab, whose lightness is perceptual (Ottosson).
    """
    table = _table().to(value.device)
    place = value.detach().float().nan_to_num(0.0).clamp(0, 1) * (len(table) - 1)
    low = place.long().clamp_max(len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low)[..., None])


@functools.cache
def _table(size: int = 256) -> Float[Tensor, "size 3"]:
    points = torch.tensor(_POINTS, dtype=torch.float64)
    hue = points[:, 2].deg2rad()
    lab = torch.stack([points[:, 0], points[:, 1] * hue.cos(), points[:, 1] * hue.sin()], -1)
    place = torch.linspace(0, len(lab) - 1, size, dtype=torch.float64)
    low = place.long().clamp_max(len(lab) - 2)
    return _srgb(torch.lerp(lab[low], lab[low + 1], (place - low)[:, None])).float()


def _srgb(oklab: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """OKLab to gamma-coded sRGB, clipped to what a screen can show."""
    to_cones = oklab.new_tensor(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear = oklab.new_tensor(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = ((oklab @ to_cones.T) ** 3 @ to_linear.T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things go on the sheet, in pixels."""

    cell: tuple[int, int]
    columns: int
    top: int  # of the first row of pictures
    pitch: int  # from one row to the next
    footer_top: int
    height: int

    @classmethod
    def of(
        cls, columns: Mapping[str, Column], footer: Mapping[str, str], scale: int | None
    ) -> _Layout:
        first = next(c.pictures[0] for c in columns.values() if len(c.pictures))
        height, width = first.shape[:2]
        n = len(columns)
        room = (_WIDTH - 2 * _MARGIN - (n - 1) * _GAP) // n
        wide = width * scale if scale else min(_CELL, room)
        cell = (wide, max(1, round(wide * height / width)))
        heads = [sum(_line(s) for _, s in _head(k, c, wide)) for k, c in columns.items()]
        labels = _line(_LABEL) if any(c.labels for c in columns.values()) else 0
        top = _MARGIN + max(heads) + _GAP // 2
        pitch = cell[1] + labels + _GAP
        rows = max(len(c.pictures) for c in columns.values())
        footer_top = top + rows * pitch
        sheet_width = 2 * _MARGIN + n * wide + (n - 1) * _GAP
        lines = len(_flow(footer, sheet_width - 2 * _MARGIN))
        end = footer_top + lines * _line(_CAPTION) + (_GAP // 2 if lines else -_GAP)
        return cls(cell, n, top, pitch, footer_top, end + _MARGIN)

    @property
    def width(self) -> int:
        return self.left(self.columns) - _GAP + _MARGIN

    def left(self, column: int) -> int:
        return _MARGIN + column * (self.cell[0] + _GAP)


def _draw_column(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, layout: _Layout, what: tuple[int, str, Column]
) -> None:
    left, name, column = what
    wide, high = layout.cell
    y = _MARGIN
    for line, size in _head(name, column, wide):
        y += _line(size)
        colour = _INK if size == _NAME else _GREY
        draw.text((left, y - _line(size) // 3), line, colour, _font(size), anchor="ls")
    for row, picture in enumerate(column.pictures):
        top = layout.top + row * layout.pitch
        image = _fit(picture, layout.cell)
        corner = (left + (wide - image.width) // 2, top + (high - image.height) // 2)
        sheet.paste(image, corner)
        end = (corner[0] + image.width - 1, corner[1] + image.height - 1)
        draw.rectangle((*corner, *end), outline=_RULE)
        if row < len(column.labels):
            place = (left, top + high + _line(_LABEL) * 4 // 5)
            draw.text(place, _spelt(column.labels[row]), _GREY, _font(_LABEL), anchor="ls")


def _fit(picture: Picture, cell: tuple[int, int]) -> Image.Image:
    """The picture as large as the cell allows, undistorted, smoothly resampled."""
    values = picture.detach().cpu().float().nan_to_num(0.0).clamp(0, 1)
    image = Image.fromarray((values * 255).round().to(torch.uint8).numpy())
    factor = min(cell[0] / image.width, cell[1] / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _head(name: str, column: Column, width: int) -> list[tuple[str, int]]:
    """Lines and font sizes of the name and the caption, broken where they do not fit."""
    caption = [part for line in column.caption.splitlines() for part in _broken(line, width)]
    names = _broken(name, width, _NAME)
    return [(line, _NAME) for line in names] + [(line, _CAPTION) for line in caption]


def _broken(text: str, width: int, size: int = _CAPTION) -> list[str]:
    """Lines of whole words that fit the width; a longer word gets a line of its own."""
    lines = [""]
    for word in _spelt(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _flow(footer: Mapping[str, str], width: int) -> list[list[tuple[float, str, str]]]:
    """Lines of (x, text, colour): grey names and their values, broken between pairs."""
    font, x = _font(_CAPTION), float(width)
    lines: list[list[tuple[float, str, str]]] = []
    for name, value in footer.items():
        name, value = f"{_spelt(name)} ", _spelt(value)
        middle, length = font.getlength(name), font.getlength(name + value)
        if x + length > width:
            lines.append([])
            x = 0.0
        lines[-1] += [(x, name, _GREY), (x + middle, value, _INK)]
        x += length + 2 * _GAP
    return lines


def _spelt(text: str) -> str:
    return text.translate(_SPELT)


def _line(size: int) -> int:
    return size * 3 // 2


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
