"""Views of a scene: where every pixel looks, and where every point is seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .distortion import distort, distort_radius, fold, reach, undistort, undistort_radius

CameraModel = Literal["pinhole", "opencv", "opencv_fisheye"]

_NOWHERE = -1e6  # pixels of points that no lens shows: far outside any picture, yet finite


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cameras:
    """n views of one image size; everything about a pixel except its colour.

    intrinsics: fx, fy, cx, cy in pixels, the centre of the first pixel being (0.5, 0.5).
    distortion: k1 k2 k3 k4 p1 p2 of OpenCV's models, zeros when there is none.
    poses: camera-to-world in OpenGL axes (x right, y up, looking along -z), world units.
    """

    width: int
    height: int
    intrinsics: Float[Tensor, "n 4"]
    distortion: Float[Tensor, "n 6"]
    model: CameraModel
    poses: Float[Tensor, "n 3 4"]

    def __len__(self) -> int:
        return len(self.poses)

    def rays(
        self, view: Int[Tensor, "r"], x: Int[Tensor, "r"], y: Int[Tensor, "r"]
    ) -> tuple[Float[Tensor, "r 3"], Float[Tensor, "r 3"]]:
        """Origins and unit directions, in the world, of the rays through the centres of pixels.

        Column x counts from the left, row y from the top. Distorted pixels are traced back by
        Newton's method; images are never resampled. Pixels where the lens model shows nothing, see
        `unmapped`, get the outermost ray in their direction.
        """
        dtype = self.poses.dtype
        fx, fy, cx, cy = self.intrinsics.index_select(0, view).unbind(-1)
        right = (x.to(dtype) + 0.5 - cx) / fx
        down = (y.to(dtype) + 0.5 - cy) / fy
        if self.model == "pinhole":
            local = torch.stack([right, -down, -torch.ones_like(right)], -1)
        else:
            local = self._through_lens(view, torch.stack([right, down], -1))
        pose = self.poses.index_select(0, view)
        direction = (pose[:, :, :3] * local[:, None]).sum(-1)
        return pose[:, :, 3].contiguous(), torch.nn.functional.normalize(direction, dim=-1)

    def _through_lens(
        self, view: Int[Tensor, "r"], seen: Float[Tensor, "r 2"]
    ) -> Float[Tensor, "r 3"]:
        """Directions in camera axes of points of the distorted image plane."""
        coefficients = self.distortion.index_select(0, view)
        limit = reach(self.distortion, fisheye=self.model == "opencv_fisheye")
        limit = limit.index_select(0, view)
        if self.model == "opencv":
            ideal = undistort(seen, coefficients, limit)
            return torch.cat([ideal, ideal.new_ones(len(ideal), 1)], -1) * seen.new_tensor(
                [1, -1, -1]
            )
        radius = seen.norm(dim=-1)
        angle = undistort_radius(radius, coefficients, limit)
        # On the axis itself the direction in the plane does not matter: sin(0) = 0.
        plane = seen * (angle.sin() / radius.clamp(min=1e-12))[:, None]
        return torch.stack([plane[:, 0], -plane[:, 1], -angle.cos()], -1)

    def unmapped(self) -> float:
        """Share of pixels further out than the lens can show anything, beyond the model's fold."""
        if self.model == "pinhole":
            return 0.0
        y, x = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        limit = reach(self.distortion, fisheye=self.model == "opencv_fisheye")
        outermost = distort_radius(limit, self.distortion)
        lenses = torch.cat([self.intrinsics, outermost[:, None]], 1).cpu()
        rows, count = lenses.unique(dim=0, return_counts=True)
        outside = 0.0
        for (fx, fy, cx, cy, most), views in zip(rows.tolist(), count.tolist(), strict=True):
            radius = (((x + 0.5 - cx) / fx) ** 2 + ((y + 0.5 - cy) / fy) ** 2).sqrt()
            outside += views * float((radius > most).double().mean())
        return outside / len(self)

    def project(
        self, view: int, points: Float[Tensor, "m 3"]
    ) -> tuple[Float[Tensor, "m 2"], Float[Tensor, "m"]]:
        """Pixel coordinates (x, y) of world points in one view, and their depth.

        Depth is along the optical axis, positive in front. Points the lens cannot show, behind a
        pinhole or beyond the fold of its polynomial, get coordinates far outside the picture.
        """
        pose = self.poses[view]
        right, up, back = ((points - pose[:, 3]) @ pose[:, :3]).unbind(-1)
        depth = -back
        local = torch.stack([right, -up], -1)
        if self.model == "opencv_fisheye":
            plane, shown = self._fisheye(view, local, depth)
        else:
            plane = local / depth.clamp(min=torch.finfo(depth.dtype).tiny)[:, None]
            shown = depth > 0
        if self.model == "opencv":
            shown = shown & (plane.norm(dim=-1) < fold(self.distortion[view]))
            plane = distort(plane, self.distortion[view].expand(len(plane), 6))
        pixel = plane * self.intrinsics[view, :2] + self.intrinsics[view, 2:]
        return torch.where(shown[:, None], pixel, _NOWHERE), depth

    def _fisheye(
        self, view: int, local: Float[Tensor, "m 2"], depth: Float[Tensor, "m"]
    ) -> tuple[Float[Tensor, "m 2"], Tensor]:
        """Points of the distorted image plane, and which of them the lens can show."""
        sideways = local.norm(dim=-1)
        angle = torch.atan2(sideways, depth)
        radius = distort_radius(angle, self.distortion[view].expand(len(angle), 6))
        plane = local * (radius / sideways.clamp(min=1e-12))[:, None]
        return plane, angle < fold(self.distortion[view])

    def select(self, index: int | slice | list[int] | Tensor) -> Cameras:
        """The views at `index`, always as several: an integer gives one view."""
        rows = torch.arange(len(self), device=self.poses.device)[index].reshape(-1)
        return replace(
            self,
            intrinsics=self.intrinsics[rows],
            distortion=self.distortion[rows],
            poses=self.poses[rows],
        )

    def transformed(self, centre: Float[Tensor, "3"], scale: float) -> Cameras:
        """The same cameras with positions at (p - centre) * scale and unchanged rotations."""
        position = (self.poses[:, :, 3] - centre.to(self.poses)) * scale
        return replace(self, poses=torch.cat([self.poses[:, :, :3], position[:, :, None]], -1))

    def to(self, device: torch.device) -> Cameras:
        """The same cameras on another device."""
        return replace(
            self,
            intrinsics=self.intrinsics.to(device),
            distortion=self.distortion.to(device),
            poses=self.poses.to(device),
        )
