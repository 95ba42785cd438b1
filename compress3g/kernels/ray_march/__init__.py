"""Ray marching through a bit grid: where along each ray samples are needed."""

from ._march import Samples, march, pack_bits, unpack_bits

__all__ = ["Samples", "march", "pack_bits", "unpack_bits"]
