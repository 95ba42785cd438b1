from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from compress3g.errors import SceneError
from compress3g.nerf.scene import Scene


def test_box_holds_the_frustums_and_marching_starts_before_the_nearest_bound(rig):
    written = rig(count=2)
    scene = Scene.load(written.llff())
    corners = []
    for pose in written.poses:
        for x, y in ((-0.4, -0.3), (-0.4, 0.3), (0.4, -0.3), (0.4, 0.3)):
            for depth in (3, 6):
                corners.append(pose[:3, :3] @ np.array([x, y, -1]) * depth + pose[:3, 3])
    low, high = np.min(corners, 0), np.max(corners, 0)
    np.testing.assert_allclose(scene.centre.numpy(), (low + high) / 2, atol=1e-6)
    assert scene.side == pytest.approx((high - low).max())
    assert scene.near == pytest.approx(0.9 * 3)


def test_focal_length_follows_the_real_size_of_the_images(rig):
    cameras = Scene.load(rig().llff(images="images_8", originals=8)).train.cameras
    assert torch.allclose(cameras.intrinsics[0], torch.tensor([40.0, 40.0, 16.0, 12.0]))


def test_downscale_chooses_the_folder(rig, caplog):
    written = rig()
    folder = written.llff(images="images_8", originals=8)
    with caplog.at_level(logging.WARNING, "compress3g.nerf"):
        assert Scene.load(folder, downscale=8).train.images.shape[1:3] == (24, 32)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "compress3g.nerf"):
        assert Scene.load(folder, downscale=4).train.images.shape[1:3] == (24, 32)
    assert "downscale is 8" in caplog.text
    with pytest.raises(SceneError, match=r"downscale 12 is no multiple of 8.*use 8 or 16"):
        Scene.load(folder, downscale=12)
    written.pixels = written.pixels.repeat(4, 1).repeat(4, 2)
    written.pictures("images_2")
    assert Scene.load(folder).train.images.shape[1:3] == (96, 128)
    halved = Scene.load(folder, downscale=4)
    assert halved.train.images.shape[1:3] == (48, 64)
    assert torch.allclose(halved.train.cameras.intrinsics[0], torch.tensor([80.0, 80.0, 32, 24]))
    assert Scene.load(folder, downscale=8).train.images.shape[1:3] == (24, 32)


def test_as_many_images_as_poses_are_needed(rig):
    folder = rig().llff()
    (folder / "images" / "p04.png").unlink()
    with pytest.raises(SceneError, match=r"poses_bounds.npy has 10 poses but .* has 9 images"):
        Scene.load(folder)


def _with(row, column, value):
    def edit(rows):
        rows[row, column] = value
        return rows

    return edit


BAD = {
    "nan": (_with(3, 7, np.nan), r"row 3 is not finite"),
    "infinite bound": (_with(3, 16, np.inf), r"row 3 is not finite"),
    "too far for float32": (_with(3, 3, 1e200), r"row 3 is not finite or beyond"),
    "wrong width": (lambda rows: rows[:, :16], r"has 10x16 numbers, not Nx17"),
    "one row": (lambda rows: rows[0], r"has 17 numbers, not Nx17"),
    "no rows": (lambda rows: rows[:0], r"has 0x17 numbers, not Nx17"),
    "text": (lambda rows: rows.astype(str), r"entries, not numbers"),
    "singular": (_with(2, slice(0, 15, 5), 0), r"row 2 is singular or sheared"),
    "mirrored": (lambda rows: rows * np.array([-1.0, 1, 1, 1, 1] * 3 + [1, 1]), r"row 0 mirrors"),
    "no focal length": (_with(4, 14, 0), r"row 4 needs height, width, focal > 0"),
    "bounds swapped": (_with(4, 16, 1), r"row 4 needs .* 0 < near < far"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_poses_are_one_line_that_names_the_file_and_row(rig, case):
    edit, message = BAD[case]
    written = rig()
    folder = written.llff()
    np.save(folder / "poses_bounds.npy", edit(written.rows()))
    with pytest.raises(SceneError, match=message) as caught:
        Scene.load(folder)
    assert "poses_bounds.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8',\n",
        b"nothing of the kind",
    ],
)
def test_a_file_that_is_no_array_is_named(rig, content):
    folder = rig().llff()
    (folder / "poses_bounds.npy").write_bytes(content)
    with pytest.raises(SceneError, match=r"cannot read .*poses_bounds.npy.*copy it again"):
        Scene.load(folder)


def test_pickled_poses_are_refused(rig):
    folder = rig().llff()
    np.save(folder / "poses_bounds.npy", np.array([[None] * 17]), allow_pickle=True)
    with pytest.raises(SceneError, match=r"cannot read .*poses_bounds.npy"):
        Scene.load(folder)
