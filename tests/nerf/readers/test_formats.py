from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from compress3g.errors import SceneError
from compress3g.nerf.scene import Scene

WIDTH, HEIGHT, FOCAL = 32, 24, 40.0

# Lenses as transforms.json and as COLMAP write them, and the coefficients k1 k2 k3 k4 p1 p2.
PERSPECTIVE = (
    {"fl_x": 41.0, "fl_y": 39.0, "cx": 15.0, "cy": 12.5, "k1": -0.2, "k2": 0.05}
    | {"p1": 1e-3, "p2": -2e-3, "w": WIDTH, "h": HEIGHT, "camera_model": "OPENCV"},
    ("OPENCV", (41.0, 39.0, 15.0, 12.5, -0.2, 0.05, 1e-3, -2e-3)),
)
FISHEYE = (
    {"fl_x": 21.0, "fl_y": 19.0, "cx": 15.0, "cy": 12.5, "k1": -0.03, "k2": 4e-3, "k3": -1e-3}
    | {"k4": 1e-4, "w": WIDTH, "h": HEIGHT, "camera_model": "OPENCV_FISHEYE"},
    ("OPENCV_FISHEYE", (21.0, 19.0, 15.0, 12.5, -0.03, 4e-3, -1e-3, 1e-4)),
)


def _write(rig, layout):
    return {
        "blender": rig.blender,
        "instant-ngp": rig.instant_ngp,
        "llff": rig.llff,
        "colmap binary": rig.colmap,
        "colmap text": lambda: rig.colmap(binary=False),
    }[layout]()


def _all_rays(cameras):
    n, h, w = len(cameras), cameras.height, cameras.width
    view, y, x = torch.meshgrid(*(torch.arange(k) for k in (n, h, w)), indexing="ij")
    return cameras.rays(view.reshape(-1), x.reshape(-1), y.reshape(-1))


def _expected_rays(poses):
    """Of a pinhole in double, written out: the centre of pixel (i, j) is (i + 1/2, j + 1/2)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    plane = [(x - WIDTH / 2) / FOCAL, -(y - HEIGHT / 2) / FOCAL, -np.ones_like(x)]
    local = np.stack(plane, -1).reshape(-1, 3)
    world = np.einsum("nij,pj->npi", poses[:, :3, :3], local).reshape(-1, 3)
    origin = np.repeat(poses[:, :3, 3], HEIGHT * WIDTH, 0)
    return origin, world / np.linalg.norm(world, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "layout", ["blender", "instant-ngp", "llff", "colmap binary", "colmap text"]
)
def test_every_format_gives_the_rays_and_pixels_of_the_same_cameras(rig, layout):
    written = rig()
    scene = Scene.load(_write(written, layout))
    assert scene.format == layout.split()[0]
    test = [0, 8]
    train = [i for i in range(10) if i not in test]
    for views, rows in ((scene.train, train), (scene.test, test)):
        assert views.names == tuple(f"p{i:02d}" for i in rows)
        assert np.array_equal(views.images.numpy(), written.pixels[rows])
        origin, direction = _expected_rays(written.poses[rows])
        found_origin, found_direction = _all_rays(views.cameras)
        # float32 poses of size four, and directions of length one
        np.testing.assert_allclose(found_origin.numpy(), origin, atol=1e-6)
        np.testing.assert_allclose(found_direction.numpy(), direction, atol=1e-6)


@pytest.mark.parametrize(("transforms", "colmap"), [PERSPECTIVE, FISHEYE])
def test_lens_distortion_means_the_same_in_both_formats_that_have_it(rig, transforms, colmap):
    ours = Scene.load(rig("a", lens=transforms).instant_ngp()).train.cameras
    model, values = colmap
    theirs = Scene.load(rig("b", model=model, values=values).colmap()).train.cameras
    assert ours.model == theirs.model == model.lower()
    assert torch.equal(ours.distortion, theirs.distortion)
    assert torch.equal(ours.intrinsics, theirs.intrinsics)
    for a, b in zip(_all_rays(ours), _all_rays(theirs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def _with_lens(rig, layout, lens):
    """A rig of a layout with one of the lenses above; LLFF knows none."""
    if lens is None:
        return _write(rig(), layout)
    transforms, (model, values) = lens
    return _write(rig(lens=transforms, model=model, values=values), layout)


@pytest.mark.parametrize("lens", [None, PERSPECTIVE, FISHEYE], ids=["pinhole", "opencv", "fisheye"])
@pytest.mark.parametrize(
    "layout", ["blender", "instant-ngp", "llff", "colmap binary", "colmap text"]
)
def test_points_on_a_ray_project_to_its_pixel(rig, layout, lens):
    if layout == "llff" and lens is not None:
        pytest.skip("LLFF describes no lens")
    cameras = Scene.load(_with_lens(rig, layout, lens)).train.cameras
    assert bool(cameras.distortion.any()) == (lens is not None)
    origin, direction = _all_rays(cameras)
    pixels = cameras.height * cameras.width
    for view in range(len(cameras)):
        part = slice(view * pixels, (view + 1) * pixels)
        seen, _ = cameras.project(view, origin[part] + 3 * direction[part])
        y, x = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
        expected = torch.stack([x.reshape(-1), y.reshape(-1)], -1) + 0.5
        assert (seen - expected).abs().max() < 1e-4


def test_colmap_shorthand_models_equal_their_long_forms(rig):
    pairs = [
        (("SIMPLE_RADIAL", (40.0, 16.0, 12.0, -0.1)), ("RADIAL", (40.0, 16.0, 12.0, -0.1, 0.0))),
        (
            ("SIMPLE_RADIAL_FISHEYE", (40.0, 16.0, 12.0, -0.1)),
            ("RADIAL_FISHEYE", (40.0, 16.0, 12.0, -0.1, 0.0)),
        ),
        (("SIMPLE_PINHOLE", (40.0, 16.0, 12.0)), ("PINHOLE", (40.0, 40.0, 16.0, 12.0))),
    ]
    for short, long in pairs:
        a, b = (
            Scene.load(rig(model, model=model, values=values).colmap()).train.cameras
            for model, values in (short, long)
        )
        assert a.model == b.model
        assert torch.equal(a.intrinsics, b.intrinsics)
        assert torch.equal(a.distortion, b.distortion)


@pytest.mark.parametrize("layout", ["blender", "instant-ngp", "colmap binary"])
def test_missing_images_are_skipped_with_one_warning_that_counts_them(rig, layout, caplog):
    folder = _write(rig(), layout)
    for name in ("p00", "p03", "p07"):
        (folder / "images" / f"{name}.png").unlink()
    with caplog.at_level(logging.WARNING, "compress3g.nerf"):
        scene = Scene.load(folder)
    assert len(scene.train) + len(scene.test) == 7
    (record,) = caplog.records
    assert "3 of 10 listed images do not exist" in record.getMessage()


@pytest.mark.parametrize("layout", ["blender", "instant-ngp", "llff", "colmap binary"])
def test_no_image_left_is_an_error(rig, layout):
    folder = _write(rig(), layout)
    for file in (folder / "images").iterdir():
        file.unlink()
    with pytest.raises(SceneError, match=r"images") as caught:
        Scene.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("layout", ["blender", "instant-ngp", "llff", "colmap binary"])
def test_a_single_size_is_required_and_both_sizes_are_named(rig, layout):
    from PIL import Image

    folder = _write(rig(), layout)
    Image.new("RGB", (64, 48)).save(folder / "images" / "p05.png")
    with pytest.raises(SceneError, match=r"differ in size: .*32x24.*p05.png is 64x48"):
        Scene.load(folder)


@pytest.mark.parametrize("layout", ["blender", "instant-ngp", "llff", "colmap binary"])
@pytest.mark.parametrize("keep", [0, 20, 600])
def test_a_truncated_image_is_named(rig, layout, keep):
    folder = _write(rig(), layout)
    file = folder / "images" / "p08.png"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SceneError, match=r"cannot read the image .*p08.png: .*replace it"):
        Scene.load(folder)
