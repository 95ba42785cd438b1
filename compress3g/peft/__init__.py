"""Parameter-efficient fine-tuning that gets cheaper while it runs (Light-PEFT, 2406.03792)."""

from typing import Any

from .auto import register
from .config import LightPeftConfig
from .cut import apply_plan
from .estimate import Estimator, Scores
from .folder import from_pretrained, merge, save
from .light import Light, get_light_peft_model
from .plan import Plan, make_plan
from .report import Report
from .units import candidates, units_of

__all__ = [
    "Estimator", "Light", "LightPeftCallback", "LightPeftConfig", "LightPeftTrainer", "Plan",
    "Report", "Scores", "apply_plan", "candidates", "from_pretrained", "get_light_peft_model",
    "make_plan", "merge", "save", "units_of",
]  # fmt: skip

register()


def __getattr__(name: str) -> Any:
    """What needs the library's Trainer, which takes seconds to import."""
    if name in ("LightPeftCallback", "LightPeftTrainer"):
        from . import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
