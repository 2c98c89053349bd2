"""Training: options, loop, losses, EMA, checkpoints, validation."""
