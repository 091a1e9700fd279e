"""Frames: decoding, depth maps and the cache."""
