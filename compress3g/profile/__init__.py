"""What a function costs: operations, time, memory, energy, and how sure that is."""

from .clock import Latency, Ratio, compare, measure_latency
from .count import Flops, Size, count_flops, size_of
from .measure import profile, profile_both
from .memory import Memory, measure_memory
from .power import Energy, measure_energy
from .report import Profile, Report
from .roofline import Peaks, Roofline, peaks_of
from .trace import Kernel, Trace, record_trace

__all__ = [
    "Energy",
    "Flops",
    "Kernel",
    "Latency",
    "Memory",
    "Peaks",
    "Profile",
    "Ratio",
    "Report",
    "Roofline",
    "Size",
    "Trace",
    "compare",
    "count_flops",
    "measure_energy",
    "measure_latency",
    "measure_memory",
    "peaks_of",
    "profile",
    "profile_both",
    "record_trace",
    "size_of",
]
