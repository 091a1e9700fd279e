"""The ablation: configurations, commands, the training loop, logs and the report."""
