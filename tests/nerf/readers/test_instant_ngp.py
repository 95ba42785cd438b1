from __future__ import annotations

import math

import pytest
import torch

from compress3g.errors import SceneError
from compress3g.nerf.scene import Scene


def test_box_follows_aabb_scale_scale_and_offset(rig):
    scene = Scene.load(rig().instant_ngp(aabb_scale=4, scale=0.5, offset=[0.5, 0.25, 0.0]))
    # The cube around 1/2 of side 4 after p -> p / 2 + offset.
    assert scene.centre.tolist() == [0, 0.5, 1]
    assert scene.side == 8
    assert scene.near == pytest.approx(0.05 * 8)  # cameras stand inside


def test_scale_and_offset_default_to_those_of_instant_ngp(rig):
    scene = Scene.load(rig().instant_ngp(aabb_scale=1))
    assert scene.centre.tolist() == [0, 0, 0]
    assert scene.side == pytest.approx(1 / 0.33)
    assert scene.near == 0  # cameras stand outside


def test_box_without_any_hint_surrounds_what_the_cameras_look_at(rig):
    written = rig()
    scene = Scene.load(written.instant_ngp())
    assert scene.centre.abs().max() < 0.1
    assert scene.side / 2 == pytest.approx(4, rel=0.1)


def test_parallel_cameras_without_a_box_need_one(rig):
    written = rig()
    written.poses[:, :3, :3] = written.poses[0, :3, :3]
    folder = written.instant_ngp()
    with pytest.raises(SceneError, match=r"does not tell where the scene is: give --box"):
        Scene.load(folder)
    assert Scene.load(folder, box=[-1, -1, -1, 1, 1, 1]).side == 2


def test_frames_may_have_lenses_of_their_own(rig):
    written = rig()
    folder = written.instant_ngp(fl_x=40.0)
    # Frames are written in falling order of names.
    written.change("transforms.json", lambda d: d["frames"][0].update(fl_x=50.0, cx=15.0))
    scene = Scene.load(folder)
    assert scene.train.names[-1] == "p09"
    assert scene.train.cameras.intrinsics[-1].tolist() == [50, 50, 15, 12]
    assert scene.train.cameras.intrinsics[0].tolist() == [40, 40, 16, 12]


def test_lenses_for_larger_pictures_are_scaled(rig):
    lens = {"w": 320, "h": 240, "fl_x": 400.0, "fl_y": 410.0, "cx": 150.0, "cy": 120.0}
    cameras = Scene.load(rig(lens=lens).instant_ngp()).train.cameras
    assert torch.allclose(cameras.intrinsics[0], torch.tensor([40.0, 41.0, 15.0, 12.0]))


def test_lenses_for_another_shape_of_picture_are_an_error(rig):
    folder = rig(lens={"w": 24, "h": 32}).instant_ngp()
    with pytest.raises(SceneError, match=r"is 32x24 but .* describes pictures of 24x32"):
        Scene.load(folder)


def test_both_angles_give_both_focal_lengths(rig):
    lens = {"camera_angle_x": 2 * math.atan(16 / 50), "camera_angle_y": 2 * math.atan(12 / 30)}
    cameras = Scene.load(rig(lens=lens).instant_ngp()).train.cameras
    assert torch.allclose(cameras.intrinsics[0, :2], torch.tensor([50.0, 30.0]))


@pytest.mark.parametrize("key", ["test_filenames", "val_filenames"])
@pytest.mark.parametrize("with_train", [True, False])
def test_split_follows_lists_of_names(rig, key, with_train):
    lists = {key: ["./images/p03", "images/p04"]}
    if with_train:
        lists["train_filenames"] = ["images/p01", "images/p02"]
    scene = Scene.load(rig().instant_ngp(**lists))
    assert scene.test.names == ("p03", "p04")
    rest = tuple(f"p{i:02d}" for i in range(10) if i not in (3, 4))
    assert scene.train.names == (("p01", "p02") if with_train else rest)


def test_without_lists_for_testing_the_images_not_for_training_are(rig):
    scene = Scene.load(rig().instant_ngp(train_filenames=[f"images/p{i:02d}" for i in range(8)]))
    assert scene.test.names == ("p08", "p09")


BAD = {
    "lists overlap": (
        {"train_filenames": ["images/p01"], "test_filenames": ["images/p01"]},
        r"p01.png is listed for training and for testing",
    ),
    "nothing to test": (
        {"train_filenames": ["images/p01"], "test_filenames": ["images/q"]},
        r"mend test_filenames",
    ),
    "nothing to train": (
        {"train_filenames": ["images/q"], "test_filenames": ["images/p01"]},
        r"mend train_filenames",
    ),
    "list of numbers": ({"test_filenames": [1]}, r"test_filenames is not a list of file names"),
    "unknown lens": ({"camera_model": "EQUIRECTANGULAR"}, r"camera_model 'EQUIRECTANGULAR'"),
    "no size": ({"w": 0}, r"images of 0x24 pixels are impossible"),
    "nan distortion": ({"k1": math.nan}, r"k1 is nan"),
    "offset of two": ({"offset": [0.5, 0.5]}, r"offset is \[0.5, 0.5\], not three numbers"),
    "no scale": ({"scale": 0}, r"scale 0 must be positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line_that_names_them(rig, case):
    more, message = BAD[case]
    folder = rig().instant_ngp(**more)
    with pytest.raises(SceneError, match=message) as caught:
        Scene.load(folder)
    assert "transforms.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fisheye_and_perspective_in_one_file_are_an_error(rig):
    written = rig()
    folder = written.instant_ngp()
    edit = {"camera_model": "OPENCV_FISHEYE"}
    written.change("transforms.json", lambda d: d["frames"][0].update(edit))
    with pytest.raises(SceneError, match=r"mixes a fisheye lens \(.*p09.png\)"):
        Scene.load(folder)


def test_the_older_key_for_fisheye_lenses_is_understood(rig):
    cameras = Scene.load(rig(lens={"is_fisheye": True}).instant_ngp()).train.cameras
    assert cameras.model == "opencv_fisheye"
