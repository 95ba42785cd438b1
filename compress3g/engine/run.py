"""Where a run happens: devices and seeds."""

from __future__ import annotations

import random

import numpy as np
import torch

from ..errors import ConfigError


def seed(value: int) -> torch.Generator:
    """A generator seeded with `value`; python, numpy and torch are seeded too.

    Library code draws from the generator and never from the global states.
    """
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - third-party code still reads the legacy state
    torch.manual_seed(value)
    return torch.Generator().manual_seed(value)


def device(name: str = "auto") -> torch.device:
    """The device called "auto", "cpu", "cuda" or "cuda:1"; auto is CUDA where it works.

    Raises ConfigError for other names and for CUDA devices that are not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(f"no device {name!r}: use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this torch sees no CUDA device: use --device cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"no device {name!r}: this machine has {torch.cuda.device_count()}")
    return torch.device(name)
