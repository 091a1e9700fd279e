"""The index of frames: its table, folds, roles and sampling."""
