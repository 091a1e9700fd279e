"""Flags that XLA is given before it starts; what the user put into ``XLA_FLAGS`` stays and comes first."""

import os
from importlib.metadata import version

KERNELS = "xla_cpu_experimental_ynn_fusion_type"
"""Which operations XLA's CPU compiler gives to YNNPACK. Its convolutions of 64 channels run on one core only."""

KNOWN = ((0, 10), (0, 13))
"""Versions of jaxlib, the second excluded, that have the flag: one that XLA does not know stops the process."""


def speed_up_convolutions() -> None:
    """On a CPU, convolutions by XLA's other kernels, which use all cores: call it before JAX computes anything.

    Measured by ``python -m experiments.bench convolutions``; see experiments/results.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if KERNELS not in given and KNOWN[0] <= _release("jaxlib") < KNOWN[1]:
        os.environ["XLA_FLAGS"] = f"{given} --{KERNELS}=-individual_convolution".strip()


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])
