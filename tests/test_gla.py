"""Gated linear attention: ViG's own numbers, three forms that agree, strong gates, direction, transformations.

The goldens are norms and random projections of arrays that the recurrence gave in float64, gradients by PyTorch of the
outputs weighed by the stream ``do``; streams are drawn by the rule of timm_weights.py, as (batch, heads, time, d).
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_weights
from cases import fast

import fsg_jax as fsg
from fsg_jax.models.gla import FORMS

GOLDENS = json.loads((Path(__file__).parent / "goldens/vig.json").read_text())
LENGTHS = (1, 7, 16, 33, 64, 100)
attend = fsg.gated_linear_attention
each_form = pytest.mark.parametrize("form", sorted(FORMS))


def stream(name, shape):
    drawn = np.random.default_rng(timm_weights.crc(name)).normal(0, 1, shape)
    return jnp.asarray(drawn.swapaxes(1, 2), jnp.float32)


def check(name, found, golden, tolerance):
    found = np.asarray(found, np.float64).swapaxes(1, 2)
    assert np.all(np.isfinite(found)), name
    probe = np.random.default_rng(timm_weights.crc(f"{name}/probe")).normal(0, 1, found.shape)
    norm, projection = golden
    noise = tolerance * max(1, found.size**0.5)
    np.testing.assert_allclose(np.linalg.norm(found), norm, rtol=0, atol=noise, err_msg=name)
    np.testing.assert_allclose((probe * found).sum(), projection, rtol=0, atol=2 * noise, err_msg=name)


def drawn(batch=2, time=5, heads=2, d_k=4, d_v=3, strength=1.0, dtype=jnp.float32):
    """Queries, keys, values and log-gates."""
    q, k, v, z = (
        np.random.default_rng(i).normal(size=(batch, time, heads, d)) for i, d in enumerate((d_k, d_k, d_v, d_k))
    )
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v, -strength * np.abs(z)))


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
@pytest.mark.parametrize("length", fast(LENGTHS, lambda length: length in (1, 33)))
def test_both_directions_and_their_gradients(form, length):
    key, tau = f"gla_L{length}", 16 if length % 2 else 2
    q, k, gf, gb = (stream(f"{key}/{name}", (2, 2, length, 8)) for name in ("q", "k", "gf", "gb"))
    v, do = (stream(f"{key}/{name}", (2, 2, length, 16)) for name in ("v", "do"))

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2, 3, 4), has_aux=True)
    def gradients(q, k, v, gf, gb):
        forward = attend(q, k, v, gf, form=form, chunk=16)
        backward = attend(q, k, v, gb, reverse=True, form=form, chunk=16)
        both = (forward + backward) / 2
        return jnp.sum(both * do), (forward, backward, both)

    gates = (jax.nn.log_sigmoid(4 * z) / tau for z in (gf, gb))
    gradient, outputs = gradients(q, k, v, *gates)
    names = ("o_fwd", "o_bwd", "o_bi", "dq", "dk", "dv", "dgf", "dgb")
    for name, found in zip(names, (*outputs, *gradient), strict=True):
        check(f"{key}/{name}", found, GOLDENS["attention"][key][name], 3e-6)


@each_form
@pytest.mark.parametrize(("key", "logit"), [("glax_neg60", -60.0), ("glax_neg400", -400.0), ("glax_pos30", 30.0)])
def test_strong_gates(form, key, logit):
    q, k, v, do = (stream(f"{key}/{name}", (1, 1, 40, 8)) for name in ("q", "k", "v", "do"))

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2, 3), has_aux=True)
    def gradients(q, k, v, z):
        o = attend(q, k, v, jax.nn.log_sigmoid(z) / 16, form=form)
        return jnp.sum(o * do), o

    gradient, o = gradients(q, k, v, jnp.full(q.shape, logit))
    for name, found in zip(("o", "dq", "dk", "dv", "dz"), (o, *gradient), strict=True):
        check(f"{key}/{name}", found, GOLDENS["extreme"][key][name], 3e-6)


@each_form
@pytest.mark.parametrize("log_gate", fast([-np.inf, -60.0]))
def test_a_closed_gate_forgets_all_and_nothing_else(form, log_gate):
    """Between weak gates, whose digits it must not cost: tokens from 3 on are as if there were none before them."""
    q, k, v, gates = drawn(time=9, strength=1e-3)
    closed = gates.at[:, 3].set(log_gate)

    def loss(q, k, v, gates):
        return jnp.sum(attend(q, k, v, gates, form=form)[:, 3:] ** 2)

    np.testing.assert_allclose(
        attend(q, k, v, closed, form=form)[:, 3:],
        attend(*(x[:, 3:] for x in (q, k, v, gates)), form=form),
        rtol=0,
        atol=1e-6,
    )
    found = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(q, k, v, closed)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in found)
    assert all(float(jnp.abs(x[:, :3]).max()) < 1e-15 for x in found)


@pytest.mark.parametrize(("time", "reverse"), fast([(37, True), (0, False), (1, True)]))
def test_forms_agree_and_states_go_on(time, reverse):
    """Outputs and final states, and the halves one after the other as the whole."""
    q, k, v, gates = drawn(time=time)
    state = jnp.asarray(np.random.default_rng(9).normal(size=(2, 2, 4, 3)), jnp.float32)
    options = {"initial_state": state, "reverse": reverse, "output_final_state": True, "scale": 0.3}
    expected = attend(q, k, v, gates, form="recurrent", **options)
    for form, chunk in (("quadratic", 1), ("chunked", 1), ("chunked", 8)):
        found = attend(q, k, v, gates, form=form, chunk=chunk, **options)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=5e-6)
    middle = time // 2
    parts = [slice(None, middle), slice(middle, None)][:: -1 if reverse else 1]
    outputs = []
    for part in parts:
        out, options["initial_state"] = attend(*(x[:, part] for x in (q, k, v, gates)), **options)
        outputs.append(out)
    np.testing.assert_allclose(jnp.concatenate(outputs[:: -1 if reverse else 1], 1), expected[0], rtol=0, atol=5e-6)


def test_open_gates_are_cumulative_linear_attention():
    q, k, v, _ = drawn(time=11)
    state = jnp.cumsum(k[..., None] * v[..., None, :], 1)
    expected = 0.5 * jnp.einsum("bthk,bthkv->bthv", q, state)
    np.testing.assert_allclose(attend(q, k, v, jnp.zeros_like(q)), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("form", "reverse"), [("chunked", False), ("chunked", True), ("recurrent", False)])
def test_no_gradient_from_later_tokens(form, reverse):
    """Row t of the Jacobian: the output of token t with respect to every argument of every token."""
    arguments = drawn(batch=1, time=6, heads=1, d_k=2, d_v=2)
    jacobians = jax.jit(
        jax.jacrev(lambda *a: attend(*a, form=form, reverse=reverse, chunk=4).sum((0, 2, 3)), (0, 1, 2, 3))
    )
    for name, jacobian in zip(["q", "k", "v", "gate"], jacobians(*arguments), strict=True):
        met = np.abs(jacobian).sum((1, 3, 4)) > 0
        allowed = np.triu(np.ones((6, 6), bool)) if reverse else np.tri(6, dtype=bool)
        allowed = np.eye(6, dtype=bool) if name == "q" else allowed
        if name == "gate":  # that of the first token multiplies nothing
            allowed = allowed & (np.arange(6) != (5 if reverse else 0))
        np.testing.assert_array_equal(met, allowed, err_msg=name)


def test_transformations():
    """jit, vmap and remat; in bfloat16 the sums are of float32."""
    q, k, v, gates = arguments = drawn(time=40)
    expected = attend(*arguments)
    each = jax.vmap(lambda *a: attend(*(x[None] for x in a))[0])(*arguments)
    for found in (jax.jit(attend)(*arguments), each, jax.checkpoint(attend)(*arguments)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    low = tuple(x.astype(jnp.bfloat16) for x in (q, k, v, gates))
    out, state = attend(*low, output_final_state=True)
    assert (out.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    exact = attend(*(x.astype(jnp.float32) for x in low))
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": jnp.ones((2, 5, 2, 3))}, r"k: expected \(batch, time, heads, d_k\)"),
        ({"v": jnp.ones((2, 4, 2, 3))}, r"v: expected .*d_v"),
        ({"log_gate": jnp.ones((2, 5, 2, 4), int)}, "log_gate: expected floating-point"),
        ({"chunk": 24}, "chunk: expected a power of two, found 24"),
        ({"initial_state": jnp.ones((2, 2, 3, 4))}, "initial_state: expected"),
        ({"form": "chunk"}, "chunked"),
    ],
)
def test_impossible_arguments(changes, words):
    q, k, v, gates = drawn()
    arguments = {"q": q, "k": k, "v": v, "log_gate": gates} | changes
    with pytest.raises(Exception, match=words):
        attend(**arguments)
