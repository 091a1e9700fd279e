"""Training: state, steps, losses, metrics, checkpoints, several devices."""
