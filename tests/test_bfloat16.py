"""bfloat16: a compiled model gives what its operations give one at a time.

The compiler of jaxlib 0.10 cannot fail here, those of 0.11 and 0.12 can: `make newest` runs this file with the newest.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reduced import by_family, inputs, reduced, variables

from fsg_jax.gates import SqueezeExcite
from fsg_jax.models import create_model, list_models
from fsg_jax.models.layers import gelu


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", [by_family(name) for name in list_models()])
def test_compiled_is_as_op_by_op(name, train):
    model, weights = reduced(name, dtype=jnp.bfloat16), variables(name)
    rest = {"train": train, "rngs": {"dropout": jax.random.key(0)}, "mutable": ["batch_stats"]}

    compare(lambda weights, x: model.apply(weights, x, **rest), weights, inputs(name))


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_b0"])
@pytest.mark.parametrize("gate", [None, SqueezeExcite])
def test_evaluation_of_a_deep_network(name, gate):
    """Without a barrier, of jaxlib 0.11 and 0.12 the pooled features are NaN, or as large as 1e33."""
    model = create_model(name, num_classes=0, gate=gate, dtype=jnp.bfloat16, **({} if name[0] == "e" else {"width": 4}))
    x = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    weights = jax.jit(model.init)(jax.random.key(1), x[:1])
    compare(model.apply, weights, x)


def compare(run, *arguments):
    for a, b in zip(jax.tree.leaves(run(*arguments)), jax.tree.leaves(jax.jit(run)(*arguments)), strict=True):
        np.testing.assert_allclose(b, a, atol=0.1 * float(jnp.abs(a).max()) + 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gelu_and_its_slope(dtype):
    """Against float64 of the same numbers; as near as rounding once."""
    special = pytest.importorskip("scipy.special")
    x = jnp.linspace(-6, 6, 4001, dtype=dtype)
    wide = np.asarray(x, np.float64)
    density = np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
    value, slope = jax.jit(lambda x: jax.jvp(gelu, (x,), (jnp.ones_like(x),)))(x)
    rounding = {"rtol": 0.51 * float(jnp.finfo(dtype).eps), "atol": 1e-6}
    assert value.dtype == slope.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(value, np.float64), wide * special.ndtr(wide), **rounding)
    np.testing.assert_allclose(np.asarray(slope, np.float64), special.ndtr(wide) + wide * density, **rounding)


def test_gelu_keeps_one_array_for_the_backward_pass():
    x = jnp.ones((8, 4), jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(gelu, x)[1])
    assert [(leaf.shape, leaf.dtype) for leaf in kept if leaf.size > 1] == [(x.shape, x.dtype)]
