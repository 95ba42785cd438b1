from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress3g.errors import ConfigError, SceneError
from compress3g.nerf.scene import Scene

SCENES = Path(__file__).parents[2] / "scenes"
DATA = os.environ.get("COMPRESS3G_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="COMPRESS3G_DATA is not set: no real captures")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    # One cache for all tests: the real captures are decoded once.
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("COMPRESS3G_CACHE", str(folder))


@pytest.fixture
def folder(tmp_path):
    """Four opaque pictures of 40x32 pixels, from above a box of side 2 around (1, 2, 3)."""
    frames = []
    for i in range(4):
        pixels = np.full((32, 40, 4), 60 * i, np.uint8)
        pixels[..., 3] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        matrix = [[1, 0, 0, 1 + i], [0, 1, 0, 2], [0, 0, 1, 9], [0, 0, 0, 1]]
        frames.append({"file_path": f"{i}", "transform_matrix": matrix})
    data = {"camera_angle_x": 0.8, "aabb": [[0, 1, 2], [2, 3, 4]], "frames": frames}
    (tmp_path / "transforms_train.json").write_text(json.dumps(data))
    return tmp_path


def test_unit_cameras_are_those_of_the_cube(folder):
    scene = Scene.load(folder)
    unit = scene.unit(scene.train)
    expected = (scene.train.cameras.poses[:, :, 3] - torch.tensor([1.0, 2, 3])) / 2 + 0.5
    torch.testing.assert_close(unit.poses[:, :, 3], expected)
    assert torch.equal(unit.poses[:, :, :3], scene.train.cameras.poses[:, :, :3])
    assert len(scene.train) == len(unit) == 3


def test_alpha_that_is_all_opaque_is_dropped_in_both_splits(folder):
    scene = Scene.load(folder)
    assert not scene.has_alpha
    assert scene.train.images.shape == (3, 32, 40, 3)
    assert scene.test.images.shape == (1, 32, 40, 3)
    Image.new("RGBA", (40, 32), (1, 2, 3, 200)).save(folder / "0.png")  # a test picture
    scene = Scene.load(folder)
    assert scene.has_alpha
    assert scene.train.images.shape == (3, 32, 40, 4)


def test_downscaling_keeps_what_a_pixel_sees(folder):
    full, half = (Scene.load(folder, downscale=factor).train for factor in (1, 2))
    assert half.images.shape == (3, 16, 20, 3)
    assert (half.cameras.width, half.cameras.height) == (20, 16)
    corner = full.cameras.project(0, torch.tensor([[1.3, 2.2, 3.0]]))[0]
    assert torch.allclose(half.cameras.project(0, torch.tensor([[1.3, 2.2, 3.0]]))[0], corner / 2)


def test_a_given_box_and_near_are_used(folder):
    scene = Scene.load(folder, box=[0, 0, 0, 1, 2, 4], near=1.5)
    assert scene.centre.tolist() == [0.5, 1, 2]
    assert (scene.side, scene.near) == (4, 1.5)


def test_names_are_unique_though_pictures_are_not_called_so(folder):
    data = json.loads((folder / "transforms_train.json").read_text())
    for i, frame in enumerate(data["frames"]):
        (folder / str(i % 2)).mkdir(exist_ok=True)
        name = folder / str(i % 2) / f"{i // 2}.png"
        (folder / f"{i}.png").rename(name)
        frame["file_path"] = str(name.relative_to(folder))
    (folder / "transforms_train.json").write_text(json.dumps(data))
    assert Scene.load(folder).train.names == ("1_0", "0_1", "1_1")


@pytest.mark.parametrize(
    "options",
    [
        {"downscale": 0},
        {"downscale": -2},
        {"downscale": 1.5},
        {"near": -1.0},
        {"near": math.nan},
        {"near": math.inf},
        {"box": [0, 0, 0, 1, 1]},
        {"box": [0, 0, 0, 1, 1, 0]},
        {"box": [0, 0, 0, 1, 1, math.nan]},
        {"box": ["a"] * 6},
        {"format": "nerf"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_bad_options_are_named(folder, options):
    (name,) = options
    with pytest.raises(ConfigError, match=rf"^{name} .* (give|use)"):
        Scene.load(folder, **options)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(SceneError, match=r"nowhere does not exist: give the folder"):
        Scene.load(tmp_path / "nowhere")


@pytest.mark.parametrize("layout", ["auto", "blender", "instant-ngp", "llff", "colmap"])
def test_an_empty_folder_is_named(tmp_path, layout):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match=r"empty is an empty folder"):
        Scene.load(tmp_path / "empty", format=layout)


def test_a_folder_of_something_else_says_what_was_sought(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(SceneError, match=r"has none of transforms_train.json, transforms.json"):
        Scene.load(tmp_path)
    with pytest.raises(SceneError, match=r"a.png is a file: give the folder"):
        Scene.load(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("layout", "sought"),
    [
        ("blender", "transforms_train.json"),
        ("instant-ngp", "transforms.json"),
        ("llff", "poses_bounds.npy"),
        ("colmap", "sparse/0"),
    ],
)
def test_a_format_that_is_not_there_names_its_file(tmp_path, layout, sought):
    (tmp_path / "a.png").touch()
    with pytest.raises(SceneError, match=sought) as caught:
        Scene.load(tmp_path, format=layout)
    assert "\n" not in str(caught.value)


def test_a_folder_nobody_may_read_is_one_line(folder, monkeypatch):
    def refuse(self, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SceneError, match=r"transforms_train.json: Permission denied"):
        Scene.load(folder)


@pytest.mark.parametrize("name", ["lantern", "spire", "orchard"])
def test_shipped_scenes_load_and_stand_inside_their_box(name):
    scene = Scene.load(SCENES / name)
    assert (len(scene.train), len(scene.test)) == (40, 8)
    assert scene.train.images.shape == (40, 128, 128, 4)
    assert (scene.name, scene.format, scene.near) == (name, "blender", 0)
    assert scene.has_alpha
    # Every camera sees the middle of the box in the middle of its picture.
    for view in range(40):
        seen, _ = scene.unit(scene.train).project(view, torch.full((1, 3), 0.5))
        assert (seen - 64).abs().max() < 20


@needs_data
def test_lego_has_the_views_that_exist(caplog):
    with caplog.at_level(logging.WARNING, "compress3g.nerf"):
        scene = Scene.load(Path(DATA) / "nerf" / "lego", downscale=4)
    assert (len(scene.train), len(scene.test)) == (100, 25)
    assert scene.train.images.shape == (100, 200, 200, 4)
    assert (scene.side, scene.near) == (3, 0)
    (record,) = caplog.records
    assert "175 of 300 listed images do not exist" in record.getMessage()


@needs_data
def test_fern_is_seen_from_in_front_of_its_box():
    scene = Scene.load(Path(DATA) / "nerf" / "fern")
    assert (len(scene.train), len(scene.test)) == (17, 3)
    assert scene.train.images.shape == (17, 378, 504, 3)
    # Row 0 of the file: focal length 3260.526 of pictures eight times as wide.
    assert scene.test.cameras.intrinsics[0, 0].item() == pytest.approx(3260.526 / 8, rel=1e-6)
    # Marching from `near` is inside the box, along the axis of every camera.
    cameras = scene.unit(scene.train)
    start = cameras.poses[:, :, 3] - cameras.poses[:, :, 2] * scene.near / scene.side
    assert ((start > 0) & (start < 1)).all()
