"""Published scores of what may go, on one calibration pass."""

from .allocation import by_layer, by_pq_index, pq_index, pq_kept
from .amp import Contributions, amp
from .block_influence import block_influence
from .flap import flap
from .held import held
from .hesso import GradualShrink, hesso, learn_hesso, mixed_score
from .magnitude import magnitude
from .observe import Stats, observe
from .pdp import learn_pdp, norms, soft_masks
from .random import random
from .refit import refit
from .table import CRITERIA, Allocation, Criterion, Evidence, choose, gather, score
from .takeover import Takeover, takeover
from .taylor import fisher, taylor, taylor_signed
from .vib import VIBGates, learn_vib
from .wanda import wanda

__all__ = [
    "CRITERIA", "Allocation", "Contributions", "Criterion", "Evidence", "GradualShrink", "Stats",
    "Takeover", "VIBGates", "amp", "block_influence", "by_layer", "by_pq_index", "choose", "fisher",
    "flap", "gather", "held", "hesso", "learn_hesso", "learn_pdp", "learn_vib", "magnitude",
    "mixed_score", "norms", "observe", "pq_index", "pq_kept", "random", "refit", "score",
    "soft_masks", "takeover", "taylor", "taylor_signed", "wanda",
]  # fmt: skip
