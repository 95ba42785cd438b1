from __future__ import annotations

import torch

from compress3g.nerf.hull import visual_hull


def test_the_hull_contains_the_object_and_little_else(scene):
    side = 24
    hull = visual_hull(scene, side)
    centre = (torch.arange(side) + 0.5) / side * scene.side + scene.centre[0] - scene.side / 2
    z, y, x = torch.meshgrid(centre, centre, centre, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    assert bool(hull[radius < 0.5].all())
    # Silhouettes are widened by 9 pixels, here 0.5 units: nothing beyond twice the radius stays.
    assert float(hull[radius > 1.35].float().mean()) < 0.05
    assert 0.03 < float(hull.float().mean()) < 0.8
