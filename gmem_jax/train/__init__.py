"""Training: the step, its state, the loop around it, and checkpoints."""
