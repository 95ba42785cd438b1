"""What every long run needs: seeds, devices, checkpoints, a progress line, logging."""
