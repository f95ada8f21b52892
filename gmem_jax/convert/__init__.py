"""Published PyTorch checkpoints to orbax, without torch."""
