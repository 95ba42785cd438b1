"""Going on from what an earlier run of benchmarks/mamba_accuracy.py found."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _small_pictures import DataSet


def earlier(file: Path | None, chosen, data_set: DataSet, name: str) -> dict[str, Any]:
    """Rows of a results file; leaves with one line where it was measured with other settings."""
    if file is None:
        return {}
    found = json.loads(file.read_text())
    size = chosen.pictures or data_set.fine.batch
    theirs = found["name"], found["steps"], found.get("pictures"), tuple(found["layers"])
    if theirs != (name, chosen.steps, size, data_set.layers):
        print(f"--earlier {file} was measured with other settings: {theirs}", file=sys.stderr)
        raise SystemExit(2)
    return found["rows"]


def outdated(rows: Mapping[str, Any]) -> list[str]:
    """Gaps "TEST: ROLE (OURS) - r_meeto" that are not those of their two rows' seeds any more.

    A gap whose answers are not known any more is carried over; its rows may have got seeds since.
    """
    found = []
    for key, row in rows.items():
        test, _, pair = key.partition(": ")
        ours, theirs = (
            rows.get(f"{test} {name}", {}).get("seeds", [])
            for name in (pair.partition("(")[2].rpartition(")")[0], "r_meeto")
        )
        both = min(len(ours), len(theirs))
        if "points" in row and both:
            points = np.mean(ours[:both]) - np.mean(theirs[:both])
            if abs(points - row["points"]) > 1e-6:
                found.append(key)
    return found
