"""The flags that commands give to XLA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import fast

from experiments import xla_flags

FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"

PROGRAM = """
import jax, jax.numpy as jnp
from experiments import devices
devices.start()
x, w = jnp.ones((2, 8, 8, 64)), jnp.ones((3, 3, 64, 64))
conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
print("ynn" in jax.jit(conv).lower(x, w).compile().as_text())
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, FLAG),
        ("--xla_force_host_platform_device_count=8", f"--xla_force_host_platform_device_count=8 {FLAG}"),
        ("--xla_cpu_experimental_ynn_fusion_type=dot", "--xla_cpu_experimental_ynn_fusion_type=dot"),
    ],
)
def test_flags_of_the_user_stay(monkeypatch, given, expected):
    monkeypatch.setattr(os, "environ", {} if given is None else {"XLA_FLAGS": given})
    xla_flags.speed_up_convolutions()
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize("version", ["0.9.2", "0.13.0", "1.0"])
def test_a_version_that_may_not_know_the_flag_is_not_given_it(monkeypatch, version):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(xla_flags, "version", lambda package: version)
    xla_flags.speed_up_convolutions()
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.parametrize("given", fast(["", "--xla_cpu_experimental_ynn_fusion_type=dot,individual_convolution"]))
def test_xla_takes_the_flag(given):
    """The convolution is YNNPACK's only where the user asks for it."""
    environment = os.environ | {"XLA_FLAGS": given, "JAX_PLATFORMS": "cpu"}
    command, root = [sys.executable, "-c", PROGRAM], Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=True)
    assert done.stdout.strip() == str(bool(given))
