"""Pretrained weights in, models with their weights out: other libraries' files, and folders of our own."""

from fsg_jax.pretrained.fit import Pretrained
from fsg_jax.pretrained.load import load_pretrained
from fsg_jax.pretrained.preprocessing import Preprocessing
from fsg_jax.pretrained.save import save_pretrained

__all__ = ["Preprocessing", "Pretrained", "load_pretrained", "save_pretrained"]
