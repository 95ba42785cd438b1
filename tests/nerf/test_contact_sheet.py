from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError
from compress3g.nerf.contact_sheet import (
    Column,
    colour_map,
    contact_sheet,
    error_map,
    saliency_slice,
    slice_column,
    telling_index,
)

_LUMA = torch.tensor([0.2126, 0.7152, 0.0722])


def _flat(value: float, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.full((height, width, 3), value)


def _shell(size: int = 33) -> torch.Tensor:
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 3, indexing="ij")
    return ((x**2 + y**2 + z**2).sqrt() - 0.6).abs().lt(0.1).float()


def _count(sheet, value: int) -> int:
    return int((np.asarray(sheet) == value).all(-1).sum())


def test_every_picture_is_on_the_sheet_at_the_asked_scale():
    columns = {"a": [_flat(0.2), _flat(0.4)], "b": [_flat(0.6)]}
    sheet = contact_sheet(columns, footer={}, scale=3)
    for value in (51, 102, 153):
        # The hairline around a picture covers its outermost pixels.
        assert _count(sheet, value) == (3 * 32 - 2) ** 2


def test_a_sheet_is_white_around_its_pictures_with_even_margins():
    sheet = np.asarray(contact_sheet({"": [_flat(0.2)], " ": [_flat(0.2)]}, footer={}, scale=2))
    used = np.flatnonzero((sheet != 255).any((0, 2)))
    assert used[0] == sheet.shape[1] - 1 - used[-1] == 36
    below = np.flatnonzero((sheet != 255).any((1, 2)))[-1]
    assert sheet.shape[0] - 1 - below == 36


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 8), st.integers(1, 3), st.integers(8, 60), st.integers(8, 60))
def test_a_sheet_without_scale_is_never_wider_than_1400(columns, rows, height, width):
    pictures = {str(i): [_flat(0.5, height, width)] * rows for i in range(columns)}
    assert contact_sheet(pictures, footer={"steps": "1,000"}).width <= 1400


def test_pictures_of_another_shape_keep_their_proportions():
    sheet = np.asarray(
        contact_sheet({"wide": [_flat(0.2, 20, 40)], "square": [_flat(0.6)]}, footer={}, scale=4)
    )
    found = (sheet == 153).all(-1)
    assert found.any(0).sum() == found.any(1).sum() == 78  # an 80x80 square in a 160x80 cell


def test_upscaling_is_smooth():
    edge = torch.zeros(32, 32, 3)
    edge[:, 16:] = 1.0
    sheet = np.asarray(contact_sheet({"edge": [edge]}, footer={}, scale=8))
    row = sheet[sheet.shape[0] - 36 - 100, 40:280, 0]
    assert ((row > 20) & (row < 235)).sum() >= 4  # a nearest-neighbour edge has none


def test_captions_labels_and_footer_are_written():
    bare = contact_sheet({"a": [_flat(0.5)]}, footer={}, scale=8)
    column = Column([_flat(0.5)], "31.2 dB\n75,210 × 2 parameters", ["view 0"])
    full = contact_sheet({"a": column}, footer={"scene": "lantern"}, scale=8)
    assert full.height > bare.height + 3 * 20
    assert (np.asarray(full) != 255).sum() > (np.asarray(bare) != 255).sum()


def test_long_texts_are_broken_not_cut():
    word = "parameters "
    short = contact_sheet({"a": Column([_flat(0.5)], word)}, footer={"n": "1"}, scale=6)
    long = contact_sheet(
        {word * 4: Column([_flat(0.5)], word * 6)}, footer={str(i): word for i in range(9)}, scale=6
    )
    assert long.width == short.width
    assert long.height > short.height + 6 * 30
    assert (np.asarray(long)[:, -36:] == 255).all()


def test_values_outside_and_nan_do_not_break_a_sheet():
    picture = _flat(2.0)
    picture[0, 0] = torch.nan
    picture[1] = -1.0
    assert contact_sheet({"a": [picture]}, footer={}).width > 0


@pytest.mark.parametrize("columns", [{}, {"a": []}, {"a": [], "b": Column([])}])
def test_an_empty_sheet_is_refused(columns):
    with pytest.raises(ConfigError, match="at least one picture"):
        contact_sheet(columns, footer={})


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        contact_sheet({"a": [_flat(0.5)]}, footer={}, scale=0)


def test_lightness_rises_evenly_with_the_value():
    colour = colour_map(torch.linspace(0, 1, 201)).double()
    assert ((colour >= 0) & (colour <= 1)).all()
    linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    # CIE lightness, an independent measure: monotone, and no step twice the mean one.
    luminance = linear @ _LUMA.double()
    step = (116 * luminance.clamp_min(0.0089) ** (1 / 3) - 16).diff()
    assert (step >= 0).all()
    assert step.max() < 2 * step.mean()


def test_the_colour_map_clips_and_takes_nan_for_zero():
    low, high = colour_map(torch.tensor([0.0, 1.0]))
    found = colour_map(torch.tensor([-3.0, 7.0, torch.nan]))
    assert torch.equal(found, torch.stack([low, high, low]))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from("xyz"), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_a_slice_shows_the_one_voxel_where_it_is(axis, x, y, z):
    volume = torch.zeros(6, 6, 6)
    volume[z, y, x] = 1.0
    place = {"x": x, "y": y, "z": z}
    right, up = {"x": (y, z), "y": (x, z), "z": (x, y)}[axis]
    picture = saliency_slice(volume, axis, place[axis])
    bright = (picture @ _LUMA > 0.5).nonzero().tolist()
    assert bright == [[5 - up, right]]
    others = saliency_slice(volume, axis, (place[axis] + 1) % 6)
    assert not (others @ _LUMA > 0.5).any()


def test_an_index_outside_is_refused():
    with pytest.raises(ConfigError, match="x=6 is outside"):
        saliency_slice(torch.zeros(6, 6, 6), "x", 6)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_the_telling_plane_cuts_a_shell_near_its_middle(axis):
    volume = _shell()
    index = telling_index(volume, axis)
    assert abs(index - 16) <= 5
    plane = volume.select("zyx".index(axis), index)
    assert plane[16, 16] == 0  # hollow
    assert plane.sum() > 20


def test_the_telling_plane_finds_a_lone_part_and_prefers_the_middle_of_nothing():
    volume = torch.zeros(32, 32, 32)
    assert telling_index(volume) in (15, 16)
    volume[3, 5:9, 5:9] = 1.0
    assert telling_index(volume, "z") == 3


def test_a_slice_column_has_one_labelled_slice_per_axis():
    column = slice_column(_shell(), "12 % kept")
    assert [label.split(" ")[0] for label in column.labels] == ["y", "x", "z"]
    assert [tuple(p.shape) for p in column.pictures] == [(33, 33, 3)] * 3
    assert len(slice_column(_shell(), rows=1).pictures) == 1
    with pytest.raises(ConfigError, match="not 4"):
        slice_column(_shell(), rows=4)


def test_an_error_map_is_brightest_where_the_error_is():
    a, b = _flat(0.5), _flat(0.5)
    b[4, 7] += 0.2
    b[9, 9] += 0.1
    brightness = error_map(a, b) @ _LUMA
    assert brightness.argmax() == 4 * 32 + 7
    assert brightness[9, 9] > brightness[0, 0]
    assert torch.equal(error_map(a, b, limit=0.1)[9, 9], colour_map(torch.tensor(1.0)))
    with pytest.raises(ConfigError, match="positive"):
        error_map(a, b, limit=0.0)
