"""What all benchmarks share: the machine in words, and results as JSON beside this file."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, instruction set, torch."""
    from compress3g.kernels import _library

    model = "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    body = "reference" if _library.status() else _library.isa()
    return {
        "processor": model,
        "body": body,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }


def save(name: str, figures: dict[str, Any], *, as_json: bool, keep: bool) -> None:
    """Writes results/<name>.json when `keep`; prints one JSON object last when asked."""
    whole = {"benchmark": name, "machine": machine(), **figures}
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    if as_json:
        print(json.dumps(whole))


def goal(text: str, value: float, limit: float, *, at_least: bool = True) -> dict[str, Any]:
    """Prints whether a goal was met; the same as data."""
    met = value >= limit if at_least else value <= limit
    sign = ">=" if at_least else "<="
    print(f"goal {'met   ' if met else 'MISSED'} {text}: {value:.2f} ({sign} {limit:g})")
    return {"goal": text, "value": value, "limit": limit, "met": met}
