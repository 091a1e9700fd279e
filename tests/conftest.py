"""The strict session: rank promotion raises, warnings are errors (pyproject.toml), shapes are checked by beartype.

Compiled programs are kept in pytest's cache folder, for all workers, the commands that tests start, and later runs;
``pytest --cache-clear`` empties it.
"""

import gc
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from experiments import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/d/xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS"):
    xla_flags.compile_quickly()
else:
    xla_flags.compile_quickly(xla_flags.ONE_PART)

import jax
import pytest
from jaxtyping import install_import_hook

if find_spec("beartype"):  # not on every machine with an accelerator
    assert "fsg_jax" not in sys.modules
    install_import_hook("fsg_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

PROGRAMS = Path(__file__).parents[1] / ".pytest_cache/d/xla"
LARGEST = 2**30

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Empties the folder of programs when it has grown large, before any worker starts."""
    if not hasattr(config, "workerinput") and sum(f.stat().st_size for f in PROGRAMS.glob("*")) > LARGEST:
        shutil.rmtree(PROGRAMS)


@pytest.fixture(scope="module", autouse=True)
def earlier_objects_are_not_searched() -> None:
    """Later collections of garbage pass over what earlier files left, which is mostly JAX's caches.

    Where these have become many they are emptied, before XLA ends the process for want of memory maps.
    """
    from experiments.devices import share_of_memory_maps  # not at the top: shapes are checked in what comes later

    if share_of_memory_maps() > 0.2:
        gc.unfreeze()
        jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
