"""Published scores of what may go, on one calibration pass."""

from .allocation import by_layer, by_pq_index, pq_index, pq_kept
from .amp import Contributions, amp
from .block_influence import block_influence
from .flap import flap
from .magnitude import magnitude
from .observe import Stats, observe
from .random import random
from .table import CRITERIA, Criterion, Evidence, gather
from .taylor import fisher, taylor, taylor_signed
from .wanda import wanda

__all__ = [
    "CRITERIA", "Contributions", "Criterion", "Evidence", "Stats", "amp", "block_influence",
    "by_layer", "by_pq_index",
    "fisher", "flap", "gather", "magnitude", "observe", "pq_index", "pq_kept", "random", "taylor",
    "taylor_signed", "wanda",
]  # fmt: skip
