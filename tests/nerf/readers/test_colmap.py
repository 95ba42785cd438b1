from __future__ import annotations

import shutil
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress3g.errors import SceneError
from compress3g.nerf.scene import Scene


@pytest.mark.parametrize("binary", [True, False])
def test_box_holds_98_percent_of_the_points_along_each_axis(rig, binary):
    written = rig()
    written.points[0] = 1e6  # one wild point must not matter
    scene = Scene.load(written.colmap(binary=binary))
    low, high = np.quantile(written.points, [0.01, 0.99], axis=0)
    np.testing.assert_allclose(scene.centre.numpy(), (low + high) / 2, rtol=1e-5, atol=1e-6)
    assert scene.side == pytest.approx((high - low).max())


def test_marching_starts_before_the_nearest_points_seen(rig):
    written = rig()
    scene = Scene.load(written.colmap())
    nearest = min(  # image i sees the points i and i + 1
        np.quantile(np.linalg.norm(written.points[i : i + 2] - pose[:3, 3], axis=1), 0.01)
        for i, pose in enumerate(written.poses)
    )
    assert scene.near == pytest.approx(0.9 * nearest)


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_without_points_the_box_surrounds_what_the_cameras_look_at(rig, suffix):
    folder = rig().colmap(binary=suffix == ".bin")
    (folder / "sparse" / "0" / f"points3D{suffix}").unlink()
    scene = Scene.load(folder)
    assert scene.centre.abs().max() < 0.1
    assert scene.side / 2 == pytest.approx(4, rel=0.1)
    assert scene.near == pytest.approx(0.05 * scene.side)


@pytest.mark.parametrize("sparse", ["sparse", ".", "sparse/0", "colmap/sparse/0"])
def test_the_model_is_found_where_people_put_it(rig, sparse):
    assert len(Scene.load(rig().colmap(sparse=sparse)).train) == 8


def test_the_model_itself_may_be_given(rig):
    folder = rig().colmap()
    assert len(Scene.load(folder / "sparse" / "0").train) == 8


def test_images_beside_the_model_are_found(rig):
    folder = rig().colmap(sparse=".")
    for file in (folder / "images").iterdir():
        shutil.move(file, folder / file.name)
    (folder / "images").rmdir()
    assert len(Scene.load(folder).train) == 8


def test_smaller_copies_are_used_and_may_have_another_suffix(rig):
    written = rig()
    written.names = [f"p{i:02d}.JPG" for i in range(10)]
    folder = written.colmap()
    written.names = [f"p{i:02d}.png" for i in range(10)]
    written.pictures("images_2")
    scene = Scene.load(folder, downscale=2)
    assert np.array_equal(scene.test.images.numpy(), written.pixels[[0, 8]])


def test_copies_with_other_names_are_left_alone(rig):
    written = rig()
    written.pixels = written.pixels.repeat(2, 1).repeat(2, 2)
    folder = written.colmap()
    written.names = [f"image{i:03d}.png" for i in range(10)]
    written.pictures("images_2")
    assert Scene.load(folder, downscale=2).train.names[0] == "p01"


def test_several_cameras_of_one_size_are_fine(rig):
    folder = rig().colmap(binary=False)
    model = folder / "sparse" / "0"
    with (model / "cameras.txt").open("a") as file:
        file.write("8 PINHOLE 32 24 50 51 15 11\n")
    text = (model / "images.txt").read_text()
    (model / "images.txt").write_text(text.replace("7 p05.png", "8 p05.png"))
    cameras = Scene.load(folder).train.cameras
    assert cameras.intrinsics[4].tolist() == [50, 51, 15, 11]
    assert cameras.intrinsics[3].tolist() == [40, 40, 16, 12]


def _text(name, old, new):
    def edit(model):
        text = (model / name).read_text()
        assert old in text
        (model / name).write_text(text.replace(old, new))

    return edit


BAD = {
    "unknown camera": (
        _text("images.txt", "7 p03.png", "9 p03.png"),
        r"images.txt: image p03.png has camera 9",
    ),
    "unsupported model": (
        _text("cameras.txt", "SIMPLE_PINHOLE", "FULL_OPENCV"),
        r"cameras.txt: camera model FULL_OPENCV is not one of .*undistort",
    ),
    "too few parameters": (
        _text("cameras.txt", "SIMPLE_PINHOLE", "OPENCV"),
        r"cameras.txt: line 3 is damaged",
    ),
    "text for a number": (
        _text("cameras.txt", "40.0", "forty"),
        r"cameras.txt: line 3 is damaged",
    ),
    "no focal length": (_text("cameras.txt", " 40.0", " 0"), r"camera 7 has no positive"),
    "nan centre": (_text("cameras.txt", " 16.0", " nan"), r"camera 7 has no positive"),
    "short image": (_text("images.txt", " 7 p03.png", ""), r"images.txt: line \d+ is damaged"),
    "no translation": (
        lambda model: (model / "images.txt").write_text("1 1 0 0 0 0 0 7 p03.png\n\n"),
        r"images.txt: line 1 is damaged",
    ),
    "nan observation": (_text("images.txt", " -1 ", " nan "), r"images.txt: line \d+ is damaged"),
    "huge point id": (
        lambda model: (model / "points3D.txt").write_text(f"{10**30} 1 2 3 0 0 0 0\n"),
        r"points3D.txt: line 1 is damaged",
    ),
    "huge centre": (_text("cameras.txt", " 16.0", " 1e300"), r"camera 7 has no positive"),
    "short point": (
        lambda model: (model / "points3D.txt").write_text("1 2 3"),
        r"points3D.txt: line 1 is damaged",
    ),
    "no images": (
        lambda model: (model / "images.txt").write_text("# none\n"),
        r"images.txt lists no images",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_one_line_that_names_the_file(rig, case):
    edit, message = BAD[case]
    folder = rig().colmap(binary=False)
    edit(folder / "sparse" / "0")
    with pytest.raises(SceneError, match=message) as caught:
        Scene.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("turn", [(0, 0, 0, 0), (np.nan, 0, 0, 1)])
def test_a_rotation_that_is_none_is_named(rig, monkeypatch, turn):
    written = rig()
    monkeypatch.setattr(written, "to_camera", lambda i: (turn, (0, 0, 0)))
    with pytest.raises(SceneError, match=r"the pose of p00.png is not finite"):
        Scene.load(written.colmap())


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(0, 0.999))
def test_binary_files_cut_off_anywhere_are_named(rig, name, share):
    folder = rig().colmap()
    file = folder / "sparse" / "0" / name
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SceneError, match=rf"{name} is cut off after \d+ bytes"):
        Scene.load(folder)


@pytest.mark.parametrize("change", [(8, b"\xff" * 8), (16, struct.pack("<d", 1e308))])
def test_a_point_without_id_or_place_does_not_matter(rig, change):
    written = rig()
    folder = written.colmap()
    file = folder / "sparse" / "0" / "points3D.bin"
    at, content = change[0], bytearray(file.read_bytes())
    content[at : at + 8] = change[1]  # of the first point: an unsigned id, or x
    file.write_bytes(content)
    scene = Scene.load(folder)
    low, high = np.quantile(written.points, [0.01, 0.99], axis=0)
    # One of 200 points may be left out, which moves the percentiles a little.
    np.testing.assert_allclose(scene.centre.numpy(), (low + high) / 2, atol=0.1)
    assert 0 < scene.near < 10


def test_an_unknown_binary_camera_model_is_named(rig):
    folder = rig().colmap()
    data = struct.pack("<QiiQQ", 1, 7, 99, 32, 24)
    (folder / "sparse" / "0" / "cameras.bin").write_bytes(data)
    with pytest.raises(SceneError, match=r"cameras.bin: camera model number 99"):
        Scene.load(folder)
