"""A trained model: everything that rendering needs, and nothing of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..engine.checkpoint import load_tensors, save_tensors
from ..errors import FormatError
from ..kernels.hash_grid import Levels
from ..kernels.ray_march import march, pack_bits, unpack_bits
from .cameras import Cameras
from .field import HollowField
from .occupancy import OccupancyGrid
from .render import shade
from .saliency import SaliencyGrid

GRID_CONVENTION = "torch-ngp"  # vertices on the faces of cells; others hash other corners
_FORMAT = 1
_BUNDLE = 1 << 13  # rays rendered at once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NerfModel:
    """A field, where it is occupied, and the cameras it was trained from.

    Lengths are in units of the cube, which lies around `centre` with sides of length `side` in the
    world.
    """

    field: HollowField
    occupancy: OccupancyGrid
    march_step: float
    near: float
    cameras: Cameras
    centre: Float[Tensor, "3"]
    side: float

    def to_unit(self, cameras: Cameras) -> Cameras:
        """Cameras of the world, in units of the cube."""
        return cameras.transformed(self.centre - self.side / 2, 1 / self.side)

    @torch.no_grad()
    def render(
        self, cameras: Cameras, view: int, background: float = 1.0
    ) -> Float[Tensor, "h w 3"]:
        """Colours in [0, 1] of one view over a grey background. cameras: in units of the cube."""
        width, height = cameras.width, cameras.height
        device = self.field.table.device
        pixel = torch.arange(width * height, device=device)
        parts = [self._render(cameras, view, part, background) for part in pixel.split(_BUNDLE)]
        return torch.cat(parts).clamp(0, 1).view(height, width, 3).cpu()

    def _render(
        self, cameras: Cameras, view: int, pixel: Tensor, background: float
    ) -> Float[Tensor, "n 3"]:
        cameras = cameras.to(pixel.device)
        x, y = pixel % cameras.width, pixel // cameras.width
        origin, direction = cameras.rays(torch.full_like(pixel, view), x, y)
        samples = march(
            *(origin, direction, torch.full_like(origin[:, 0], 0.5), self.occupancy.bits),
            side=self.occupancy.side,
            step=self.march_step,
            near=self.near,
        )
        behind = torch.full_like(origin, background)
        return shade(self.field, samples, direction, behind, self.march_step).colour

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata from which `from_state` makes an equal model."""
        tensors = {f"field.{name}": t for name, t in self.field.state_dict().items()}
        tensors["occupancy.bits"] = self.occupancy.bits
        tensors["occupancy.allowed"] = pack_bits(self.occupancy.allowed)
        for name in ("intrinsics", "distortion", "poses"):
            tensors[f"cameras.{name}"] = getattr(self.cameras, name)
        levels = self.field.levels
        return tensors, {
            "format": _FORMAT,
            "grid_convention": GRID_CONVENTION,
            "levels": {name: getattr(levels, name) for name in Levels.__slots__},
            "gate": self.field.gate,
            "alpha": self.field.alpha,
            "saliency": self.field.saliency.resolution if self.field.saliency else None,
            "occupancy": self.occupancy.side,
            "march_step": self.march_step,
            "near": self.near,
            "centre": self.centre.tolist(),
            "side": self.side,
            "camera": [self.cameras.width, self.cameras.height, self.cameras.model],
        }

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Writes the model and `about`, JSON values that `load` returns beside it."""
        tensors, metadata = self.state()
        save_tensors(path, tensors, {**metadata, "about": about})

    def to(self, device: torch.device) -> NerfModel:
        """The same model on another device; modules are moved in place."""
        self.field.to(device)
        self.occupancy.to(device)
        return self

    @staticmethod
    def load(path: Path) -> tuple[NerfModel, dict[str, Any]]:
        """The model in a file that `save` wrote, and what it says about itself.

        Raises FormatError for damaged files and for tables of another grid convention.
        """
        tensors, metadata = load_tensors(path)
        return NerfModel.from_state(tensors, metadata, path), metadata.get("about", {})

    @staticmethod
    def from_state(tensors: dict[str, Tensor], metadata: dict[str, Any], path: Path) -> NerfModel:
        """The model that `state` described. path: named in errors."""
        check_convention(metadata, path)
        try:
            occupancy = OccupancyGrid(metadata["occupancy"], metadata["march_step"])
            occupancy.restore(
                occupancy.density, tensors["occupancy.allowed"], tensors["occupancy.bits"]
            )
            width, height, lens = metadata["camera"]
            names = ("intrinsics", "distortion", "poses")
            cameras = {name: tensors[f"cameras.{name}"] for name in names}
            return NerfModel(
                field=_field(tensors, metadata),
                occupancy=occupancy,
                march_step=metadata["march_step"],
                near=metadata["near"],
                centre=torch.tensor(metadata["centre"]),
                side=metadata["side"],
                cameras=Cameras(width=width, height=height, model=lens, **cameras),
            )
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise FormatError(f"{path} is not a NeRF model of this version: {error!r}") from None


def check_convention(metadata: dict[str, Any], path: Path) -> None:
    """Raises FormatError when the file's hash grid hashes other corners than ours."""
    convention = metadata.get("grid_convention")
    if convention != GRID_CONVENTION:
        raise FormatError(
            f"{path} has a hash grid of convention {convention!r}, this version reads "
            f"{GRID_CONVENTION!r}: train the scene again"
        )


def levels_of(metadata: dict[str, Any]) -> Levels:
    """The grid that a file's metadata describes."""
    value = metadata["levels"]
    sizes = {name: tuple(value[name]) for name in ("resolutions", "offsets", "sizes")}
    sizes["first_ranks"] = tuple(value.get("first_ranks", ()))  # none before version 0.2
    return Levels(**sizes, features=value["features"])


def kept_of(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Bool[Tensor, "z y x"] | None:
    """The mask that a file's grid lies inside, None for a grid that fills the box."""
    bits = tensors.get("field.kept")
    return None if bits is None else unpack_bits(bits, metadata["occupancy"])


def _field(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> HollowField:
    resolution = metadata["saliency"]
    field = HollowField(
        levels_of(metadata),
        kept=kept_of(tensors, metadata),
        saliency=SaliencyGrid(resolution) if resolution else None,
        gate=metadata["gate"],
        generator=torch.Generator().manual_seed(0),
    )
    prefix = "field."
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    field.load_state_dict(state)
    field.alpha = metadata["alpha"]
    return field
