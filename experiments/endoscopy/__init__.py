"""Polyp sizing: data commands, cohorts and experiments."""
