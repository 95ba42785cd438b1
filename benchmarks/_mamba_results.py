"""Going on from what an earlier run of benchmarks/mamba_accuracy.py found."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from _small_pictures import DataSet


def earlier(file: Path | None, chosen, data_set: DataSet, name: str) -> dict[str, Any]:
    """Rows of a results file; leaves with one line where it is none, or has other settings."""
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text())
        theirs = found["name"], found["steps"], found.get("pictures"), tuple(found["layers"])
    except (OSError, ValueError, KeyError, TypeError):
        _leave(f"--earlier {file} is no results file of this benchmark")
    size = chosen.pictures or data_set.fine.batch
    if theirs != (name, chosen.steps, size, data_set.layers):
        _leave(f"--earlier {file} was measured with other settings: {theirs}")
    return found["rows"]


def _leave(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    raise SystemExit(2)


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
