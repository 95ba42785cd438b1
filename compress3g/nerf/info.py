"""What a model file holds, without the scene it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .model import GRID_CONVENTION, NerfModel


def describe(file: Path) -> dict[str, Any]:
    """Parameters by HollowNeRF's rule, bytes by part, levels, kept cells, and the run's figures."""
    model, about = NerfModel.load(file)
    field = model.field
    parts = field.counted_bytes(0 if field.kept is None else 8 * field.kept.numel())
    side = model.occupancy.side
    result = about.get("result", {})
    return {
        "file": str(file),
        "bytes on disk": file.stat().st_size,
        "scene": about.get("name", "unknown"),
        "parameters": field.parameter_count(),
        "bytes (fp32)": parts | {"all that is counted": sum(parts.values())},
        "bytes (not counted)": {"cells to march through": 2 * model.occupancy.bits.numel()},
        "grid": {
            "convention": GRID_CONVENTION,
            "levels": len(field.levels.resolutions),
            "resolutions": f"{field.levels.resolutions[0]} .. {field.levels.resolutions[-1]}",
            "largest level": max(field.levels.sizes),
            "dense levels": sum(map(field.levels.dense, range(len(field.levels.sizes)))),
            "levels inside the mask": sum(first >= 0 for first in field.levels.first_ranks),
        },
        "cells": {
            "per axis": side,
            "allowed": int(model.occupancy.allowed.sum()),
            "occupied": int(model.occupancy.cells().sum()),
        },
        "result": {
            key: result[key]
            for key in ("psnr", "ssim", "kept_cells", "kept_fraction", "steps", "seconds")
            if key in result
        },
    }
