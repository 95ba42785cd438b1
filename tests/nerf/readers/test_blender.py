from __future__ import annotations

import json
import math

import pytest

from compress3g.errors import SceneError
from compress3g.nerf.scene import Scene


def _frame(data):
    return data["frames"][2]


def test_box_is_the_aabb_of_the_file(rig):
    scene = Scene.load(rig().blender(aabb=[[-1, -2, 0], [1, 2, 1]]))
    assert scene.centre.tolist() == [0, 0, 0.5]
    assert scene.side == 4
    assert scene.near == 0


def test_box_without_aabb_is_that_of_nerf_synthetic(rig):
    scene = Scene.load(rig().blender())
    assert (scene.centre.tolist(), scene.side) == ([0, 0, 0], 3)


@pytest.mark.parametrize("name", ["transforms_val.json", None])
def test_split_without_a_test_file_is_val_then_every_eighth(rig, name):
    written = rig()
    folder = written.blender()
    test = folder / "transforms_test.json"
    if name:
        test.rename(folder / name)
    else:
        test.unlink()
        written.write("transforms_train.json", written.transforms(range(10)))
    scene = Scene.load(folder)
    assert scene.test.names == ("p00", "p08")
    assert scene.train.names == ("p01", "p02", "p03", "p04", "p05", "p06", "p07", "p09")


def test_the_file_itself_may_be_given(rig):
    scene = Scene.load(rig().blender() / "transforms_train.json")
    assert (scene.format, scene.name) == ("blender", "scene")


def test_suffixes_and_backslashes_in_paths_are_understood(rig):
    written = rig()
    folder = written.blender()
    names = [".\\images\\p01", "images/p02.png", "./images/p03"]

    def edit(data):
        for frame, name in zip(data["frames"], names, strict=False):
            frame["file_path"] = name

    written.change("transforms_train.json", edit)
    assert len(Scene.load(folder).train) == 8


def test_an_image_for_training_and_testing_is_an_error(rig):
    written = rig()
    folder = written.blender()
    written.write("transforms_test.json", written.transforms([0, 5]))
    with pytest.raises(SceneError, match=r"p05.png is listed for training and for testing"):
        Scene.load(folder)


def test_a_camera_inside_the_box_names_the_remedy(rig):
    folder = rig().blender(aabb=[[-5, -5, -5], [5, 5, 5]])
    with pytest.raises(SceneError, match=r"p\d\d.png stands inside the scene's box: give --near"):
        Scene.load(folder)
    assert Scene.load(folder, near=0.5).near == 0.5
    assert Scene.load(folder, box=(-1, -1, -1, 1, 1, 1)).near == 0


BAD = {
    "no file_path": (lambda d: _frame(d).pop("file_path"), r"frame 2 has no file_path"),
    "no matrix": (lambda d: _frame(d).pop("transform_matrix"), r"frame 2 is missing"),
    "no angle": (lambda d: d.pop("camera_angle_x"), r"neither camera_angle_x nor fl_x"),
    "no frames": (lambda d: d.pop("frames"), r"no list of frames"),
    "empty frames": (lambda d: d.update(frames=[]), r"empty list of frames"),
    "frames of numbers": (lambda d: d.update(frames=[1]), r"no list of frames"),
    "text for a number": (lambda d: d.update(fl_x="40"), r"fl_x is '40'"),
    "nan angle": (lambda d: d.update(camera_angle_x=math.nan), r"camera_angle_x is nan"),
    "huge integer": (lambda d: d.update(fl_x=10**400), r"fl_x is 1000"),
    "zero angle": (lambda d: d.update(camera_angle_x=0), r"focal length .* is impossible"),
    "singular": (
        lambda d: _frame(d).update(transform_matrix=[[0] * 4] * 4),
        r"frame 2 is singular or sheared",
    ),
    "sheared": (
        lambda d: _frame(d).update(
            transform_matrix=[[1, 0.2, 0, 4], [0, 1, 0, 4], [0, 0, 1, 4], [0, 0, 0, 1]]
        ),
        r"frame 2 is singular or sheared",
    ),
    "mirrored": (
        lambda d: _frame(d).update(
            transform_matrix=[[-1, 0, 0, 4], [0, 1, 0, 4], [0, 0, 1, 4], [0, 0, 0, 1]]
        ),
        r"frame 2 mirrors space",
    ),
    "infinite": (
        lambda d: _frame(d)["transform_matrix"][0].__setitem__(3, math.inf),
        r"frame 2 is not a finite",
    ),
    "too far for float32": (
        lambda d: _frame(d)["transform_matrix"][0].__setitem__(3, 1e200),
        r"frame 2 is not finite or beyond",
    ),
    "huge integers": (
        lambda d: _frame(d)["transform_matrix"][0].__setitem__(3, 10**400),
        r"frame 2 is missing or not a matrix",
    ),
    "box of huge integers": (
        lambda d: d.update(aabb=[[0, 0, 0], [1, 1, 10**400]]),
        r"aabb is no box",
    ),
    "ragged": (
        lambda d: _frame(d)["transform_matrix"][0].pop(),
        r"frame 2 is missing or not a matrix",
    ),
    "wrong shape": (
        lambda d: _frame(d)["transform_matrix"].pop(0) and _frame(d)["transform_matrix"].pop(0),
        r"frame 2 is not a finite 4x4 or 3x4",
    ),
    "box inside out": (lambda d: d.update(aabb=[[1, 1, 1], [-1, -1, -1]]), r"aabb is no box"),
    "box too large for float32": (
        lambda d: d.update(aabb=[[0, 0, 0], [1, 1, 1e200]]),
        r"aabb is no box",
    ),
    "box of five": (lambda d: d.update(aabb=[[1, 1, 1], [2, 2]]), r"aabb is no box"),
    "box a number": (lambda d: d.update(aabb=3), r"aabb is no box"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_cameras_are_one_line_that_names_the_file(rig, case):
    edit, message = BAD[case]
    written = rig()
    folder = written.blender()
    written.change("transforms_train.json", edit)
    with pytest.raises(SceneError, match=message) as caught:
        Scene.load(folder)
    assert "transforms_train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"3"])
def test_a_file_that_is_no_transforms_file_is_named(rig, content):
    folder = rig().blender()
    (folder / "transforms_train.json").write_bytes(content)
    with pytest.raises(SceneError, match=r"transforms_train.json") as caught:
        Scene.load(folder)
    assert "\n" not in str(caught.value)


def test_a_bad_matrix_of_a_missing_image_does_not_matter(rig):
    written = rig()
    folder = written.blender()

    def edit(data):
        data["frames"].append({"file_path": "images/none", "transform_matrix": None})

    written.change("transforms_train.json", edit)
    assert len(Scene.load(folder).train) == 8
    assert json.loads((folder / "transforms_train.json").read_text())["frames"][-1]
