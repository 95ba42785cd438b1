"""Where figures were taken: everything a reader needs to doubt or repeat them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import time
from datetime import UTC, datetime

import torch

from .. import __version__
from ..kernels import _library
from .roofline import processor


def environment(device: str = "cpu") -> dict[str, str]:
    """Command, seed, versions, threads, processors and clock, in words."""
    clock = time.get_clock_info("perf_counter")
    reason = _library.status()
    found = {
        "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": str(torch.initial_seed()),
        "compress3g": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": importlib.metadata.version("numpy"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "load": _load(),
        "kernels": _library.isa() if reason is None else f"reference: {reason}",
        "clock": f"perf_counter, {clock.implementation}, {clock.resolution * 1e9:g} ns",
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
        found["clock"] = "CUDA events, 0.5 µs; second-level cache overwritten before every sample"
    return found


def _load() -> str:
    """Runnable processes over the last minute: above the cores, every time is too long."""
    try:
        return f"{os.getloadavg()[0]:.1f}"
    except OSError:
        return "unknown"
