"""Inner channels of Mamba mixers as Units."""

from __future__ import annotations

from torch import nn

from ..core import Cut, Units
from ..errors import CutError

_PARTS = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj", "A_log", "D")


def units_of(model: nn.Module) -> list[Units]:
    """The inner channels of every mixer: state, convolution and both halves of its input.

    x_proj reads the channels a second time, inside the mixer, so the gate stands before both
    readers. Mixers may be fused kernels that never call either: run them gated with via="weight".
    Raises CutError when the model has no mixer.
    """
    mixers = [(n, m) for n, m in model.named_modules() if all(hasattr(m, p) for p in _PARTS)]
    units = [_channels(name, mixer) for name, mixer in mixers]
    if not units:
        raise CutError(f"{type(model).__name__} has no Mamba mixer ({', '.join(_PARTS)})")
    return units


def _channels(name: str, mixer: nn.Module) -> Units:
    size = int(mixer.out_proj.in_features)  # type: ignore[union-attr, arg-type]
    at = f"{name}." if name else ""
    return Units(
        f"{at}channels",
        size,
        writes=(
            Cut(f"{at}in_proj", "out"),
            Cut(f"{at}in_proj", "out", offset=size),
            *(Cut(f"{at}{part}", "out") for part in ("conv1d", "dt_proj", "A_log", "D")),
        ),
        reads=(Cut(f"{at}x_proj", "in"), Cut(f"{at}out_proj", "in")),
        attrs=tuple((f"{at}{a}", 1) for a in ("intermediate_size", "d_inner") if hasattr(mixer, a)),
    )
