"""Polyps in endoscopy video: readers, index, splits, sampling and frames."""
