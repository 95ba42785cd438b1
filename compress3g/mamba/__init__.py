"""Vision state-space models that run on fewer and fewer tokens."""

from .checkpoint import load_checkpoint, save_checkpoint
from .config import PruneConfig, preset
from .flops import flops, schedule_for_flops
from .models import (
    MambaVision,
    MambaVisionConfig,
    PlainMamba,
    PlainMambaConfig,
    Vim,
    VimConfig,
    VMamba,
    VMambaConfig,
    create_model,
)
from .patch import TokenInfo, apply_patch, feature_map, pruned, remove_patch
from .schedule import SCHEDULES, PruneSchedule
from .timm_models import register_in_timm
from .units import units_of

__all__ = [
    "SCHEDULES", "MambaVision", "MambaVisionConfig", "PlainMamba", "PlainMambaConfig",
    "PruneConfig", "PruneSchedule", "TokenInfo", "VMamba", "VMambaConfig", "Vim", "VimConfig",
    "apply_patch", "create_model", "feature_map", "flops", "load_checkpoint", "preset", "pruned",
    "register_in_timm", "remove_patch", "save_checkpoint", "schedule_for_flops", "units_of",
]  # fmt: skip
