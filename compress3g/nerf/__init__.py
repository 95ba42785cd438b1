"""HollowNeRF: hash-grid radiance fields whose space is pruned while they train."""
