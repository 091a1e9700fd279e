"""Before and after training."""
