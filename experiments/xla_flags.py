"""Flags that XLA is given before it starts; what the user put into ``XLA_FLAGS`` stays and comes first."""

import os
from importlib.metadata import version

KERNELS = "xla_cpu_experimental_ynn_fusion_type"
"""Which operations XLA's CPU compiler gives to YNNPACK. Its convolutions of 64 channels run on one core only."""

KNOWN = ((0, 10), (0, 13))
"""Versions of jaxlib, the second excluded, that have the flag: one that XLA does not know stops the process."""


def speed_up_convolutions() -> None:
    """On a CPU, convolutions by XLA's other kernels, which use all cores: call it before JAX computes anything.

    Measured by ``python -m experiments.bench layers``; see experiments/results.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if KERNELS not in given and KNOWN[0] <= _release("jaxlib") < KNOWN[1]:
        os.environ["XLA_FLAGS"] = f"{given} --{KERNELS}=-individual_convolution".strip()


ONE_PART = "--xla_cpu_parallel_codegen_split_count=1"
"""Splitting programs, for several cores to compile, doubles the work."""
QUICK = f"--xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX {ONE_PART}"
"""XLA's older code generator compiles small programs in a third of the time; without AVX2 it does not fuse a product
and a sum into one rounding, here but not there."""


def compile_quickly(flags: str = QUICK) -> None:
    """Where compiling takes most of the time, as in tests: call it before JAX computes anything.

    With other flags in ``XLA_FLAGS``, or another jaxlib than 0.10, which would stop at flags that it lacks, it does
    nothing.
    """
    if _release("jaxlib") == (0, 10):
        os.environ.setdefault("XLA_FLAGS", flags)


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])
