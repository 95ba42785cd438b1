"""What all benchmarks share: two options, goals, the machine in words, and one JSON object.

The object has `name`, `command`, `machine`, `seeds`, `goals` (a list of name, value, goal, unit and
met), `rows`, and whatever else the benchmark was set to.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options every benchmark has; `doc` is its module's docstring."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument(
        "--quick", action="store_true", help="At most a minute on two cores; keeps no file."
    )
    made.add_argument("--json", action="store_true", help="End with one line of JSON.")
    return made


def goal(
    name: str, value: float, limit: float, *, unit: str = "", at_least: bool = True
) -> dict[str, Any]:
    """Prints whether a goal was met; the same as data. A ratio has no unit."""
    met = value >= limit if at_least else value <= limit
    sign = ">=" if at_least else "<="
    print(f"goal {'met   ' if met else 'MISSED'} {name}: {value:.2f} ({sign} {limit:g}) {unit}")
    return {"name": name, "value": value, "goal": limit, "unit": unit, "met": met}


def report(
    name: str,
    options: argparse.Namespace,
    *,
    seeds: Sequence[int],
    goals: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Any],
    complete: bool = True,
    **settings: Any,
) -> None:
    """Writes results/<name>.json unless `--quick`, and with `--json` prints the object last.

    complete: False for what is known by now, where a lent machine may be taken away: the file says
    so, and nothing is printed.
    """
    figures = {
        "name": name,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_said()]),
        "machine": _machine(),
        "seeds": list(seeds),
        **settings,
        **({} if complete else {"complete": False}),
        "goals": list(goals),
        "rows": rows,
    }
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    if options.json and complete:
        print(json.dumps(figures))


def _said() -> list[str]:
    """The options of this run; where somebody keeps things on a machine is nobody's business."""
    return ["PATH" if word.startswith("/") else word for word in sys.argv[1:]]


def _machine() -> dict[str, Any]:
    """Processor, cores, threads in use, instruction set of the kernels, versions."""
    from compress3g.kernels import _library

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "kernels": "reference" if _library.status() else _library.isa(),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }
