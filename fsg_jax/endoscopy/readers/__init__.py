"""Readers of the datasets as they are distributed."""
