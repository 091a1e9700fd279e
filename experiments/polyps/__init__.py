"""Polyp sizing: configuration, task, predictions and panels."""
