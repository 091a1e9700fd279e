"""What the device's own large matrix product reaches: the yardstick of every throughput."""

import time
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp

from experiments.bench.record import Bench
from experiments.bench.settings import PRECISIONS

SUITE = "peak"


def run(bench: Bench) -> None:
    """One row a precision."""
    for precision in PRECISIONS:
        peak_flops(bench, precision)


def peak_flops(bench: Bench, precision: str) -> float:
    """FLOP/s of the matrix product in `precision`, measured if it is not among the rows.

    A float32 product is what JAX gives by default, which may be lower precision inside (TF32).
    """
    size = bench.settings.matmul
    case = f"{size} x {size} matrix product"
    if bench.missing(SUITE, case, [precision]):
        seconds = _matmul_seconds(size, precision, bench.settings.repeats)
        bench.add(SUITE, case, precision, seconds=seconds, flops_per_second=2 * size**3 / seconds)
    return next(float(row["flops_per_second"]) for row in bench.of(SUITE, case) if row["side"] == precision)


def _matmul_seconds(size: int, precision: str, repeats: int, calls: int = 10) -> float:
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.dtype(precision)) for key in keys)
    multiply = jax.jit(jnp.matmul)
    multiply(a, b).block_until_ready()
    return median(_seconds(lambda: multiply(a, b), calls) for _ in range(2 * repeats + 1))


def _seconds(call: Callable[[], jax.Array], calls: int) -> float:
    """Mean over calls that the device queues."""
    start = time.perf_counter()
    results = [call() for _ in range(calls)]
    jax.block_until_ready(results)
    return (time.perf_counter() - start) / calls
