"""Gated linear attention (Yang et al. 2023, arXiv 2312.06635): attention through a state that decays, in linear time.

Per head, with a state ``S`` of shape (d_k, d_v), zero before the first token, and log-gates ``g <= 0`` a key channel::

    S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t        o_t = scale * q_t S_t

The three forms compute the same. None subtracts sums of log-gates or divides by a decay: every exponent is itself a sum
of log-gates, so strong gates neither overflow nor cost digits, and ``-inf`` is a gate that forgets everything.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fsg_jax._checks import expect, look_up
from fsg_jax.typing import AnyArray

Values = Float[Array, "batch time heads d_v"]
State = Float[Array, "batch heads d_k d_v"]
Form = Callable[[Array, Array, Array, Array, Array, int], tuple[Array, Array]]

CHUNK = 16
"""Tokens of a chunk; ``python -m experiments.bench chunks`` compares sizes."""

LOWEST = -1e4
"""For log-gates within chunks; its exponential is 0 in float64 too."""


def gated_linear_attention(
    q: AnyArray,
    k: AnyArray,
    v: AnyArray,
    log_gate: AnyArray,
    *,
    scale: float | None = None,
    initial_state: AnyArray | None = None,
    reverse: bool = False,
    output_final_state: bool = False,
    form: str = "chunked",
    chunk: int = CHUNK,
) -> Values | tuple[Values, State]:
    """Gated linear attention of every token to itself and to those before it.

    Works for any number of tokens, 0 and 1 included, under `jax.jit`, `jax.vmap`, `jax.grad` and `jax.checkpoint`.

    Args:
      q: queries, (batch, time, heads, d_k).
      k: keys, (batch, time, heads, d_k).
      v: values, (batch, time, heads, d_v).
      log_gate: logarithms of the gates, (batch, time, heads, d_k), at most 0; a gate of token t multiplies what is
        older than t.
      scale: of the queries; None: ``d_k ** -0.5``.
      initial_state: what the tokens before these left, (batch, heads, d_k, d_v); None: nothing.
      reverse: attend to later tokens instead; the state then runs from the last token to the first.
      output_final_state: return the state after the last token (the first, if `reverse`) too.
      form: ``"chunked"``, products of matrices within chunks and a scan over them, recomputed in the backward pass, so
        that only the arguments are kept; ``"recurrent"``, a scan over tokens; ``"quadratic"``, all pairs of tokens at
        once, time^2 d_k numbers, for short inputs and tests.
      chunk: tokens of a chunk, a power of two; a shorter input has the least power of two that holds it.

    Returns:
      The outputs, in the dtype of `v`, and if asked for the state. Products, sums and the state are float32, or float64
      if an argument is.

    Raises:
      ValueError: shapes that do not fit, values that are not floating-point, an unknown form, a chunk that is no power
        of two.
    """
    arrays = {"q": q, "k": k, "v": v, "log_gate": log_gate}
    for name, x in arrays.items():
        expect(jnp.issubdtype(x.dtype, jnp.floating), name, "floating-point values", x.dtype)
        alike, last = (3, "d_v") if name == "v" else (4, "d_k")
        wanted = f"(batch, time, heads, {last}), q having {q.shape}"
        expect(x.ndim == 4 and x.shape[:alike] == q.shape[:alike], name, wanted, x.shape)
    power = isinstance(chunk, int) and chunk > 0 and not chunk & (chunk - 1)
    expect(power, "chunk", "a power of two", repr(chunk))
    batch, time, heads, d_k = q.shape
    shape = (batch, heads, d_k, v.shape[-1])
    dtype = jnp.result_type(jnp.float32, *(x.dtype for x in arrays.values()))
    state = jnp.zeros(shape, dtype) if initial_state is None else jnp.asarray(initial_state, dtype)
    expect(state.shape == shape, "initial_state", f"(batch, heads, d_k, d_v), here {shape}", state.shape)
    compute = look_up(FORMS, form, "form of gated linear attention")
    parts = (jnp.asarray(x).astype(dtype).swapaxes(1, 2) for x in arrays.values())
    q, k, values, gate = (jnp.flip(x, 2) if reverse else x for x in parts)
    q = q * (d_k**-0.5 if scale is None else scale)
    out, state = compute(q, k, values, gate, state, min(chunk, 1 << max(time - 1, 0).bit_length()))
    out = (jnp.flip(out, 2) if reverse else out).swapaxes(1, 2).astype(v.dtype)
    return (out, state) if output_final_state else out


# The forms take (batch, heads, time, d), the state and the chunk, and return outputs and state.


def _recurrent(q: Array, k: Array, v: Array, gate: Array, state: Array, chunk: int) -> tuple[Array, Array]:
    def step(state: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, gate = token
        state = jnp.exp(gate)[..., None] * state + k[..., None] * v[..., None, :]
        return state, jnp.einsum("bhk,bhkv->bhv", q, state)

    state, out = jax.lax.scan(step, state, tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v, gate)))
    return jnp.moveaxis(out, 0, 2), state


def _quadratic(q: Array, k: Array, v: Array, gate: Array, state: Array, chunk: int) -> tuple[Array, Array]:
    time = q.shape[2]
    later = jnp.tri(time, k=-1, dtype=bool)[..., None]  # of the token that asks than of the one that answers
    between = jnp.cumsum(jnp.where(later, gate[:, :, :, None], 0), 2)
    scores = jnp.tril(jnp.einsum("bhik,bhjk,bhijk->bhij", q, k, jnp.exp(between)))
    before = jnp.cumsum(gate, 2)
    out = scores @ v + (q * jnp.exp(before)) @ state
    if not time:
        return out, state
    kept = jnp.exp(before[:, :, -1])[..., None] * state
    return out, kept + jnp.einsum("bhjk,bhjk,bhjv->bhkv", k, jnp.exp(between[:, :, -1]), v)


@partial(jax.checkpoint, static_argnums=(5,))
def _chunked(q: Array, k: Array, v: Array, gate: Array, state: Array, chunk: int) -> tuple[Array, Array]:
    (*outer, time, _), count = q.shape, -(-q.shape[2] // chunk)
    rows = outer[0] * outer[1]  # on one axis: XLA's CPU backend is slower where products have several batch axes
    padding = [(0, 0), (0, 0), (0, count * chunk - time), (0, 0)]  # k = v = 0 and g = 0 leave the state as it is
    q, k, v, gate = (jnp.pad(x, padding).reshape(rows, count, chunk, x.shape[-1]) for x in (q, k, v, gate))
    sums, asks, pairs = _halvings(chunk)
    gate = jnp.maximum(gate, LOWEST)  # 0 times -inf is no number
    logs = jnp.einsum("lts,rnsk->rnltk", sums.astype(q.dtype), gate, precision=jax.lax.Precision.HIGHEST)
    before, after, decays = jnp.split(jnp.exp(logs), (1, 2), axis=2)
    before, after = before.squeeze(2), after.squeeze(2)
    halves = jnp.where(asks, q[:, :, None], k[:, :, None]) * decays
    scores = jnp.einsum("rnlik,rnljk->rnlij", halves, halves) * pairs.astype(q.dtype)
    out = scores.sum(2) @ v + (q * k).sum(-1, keepdims=True) * v
    added = jnp.einsum("rntk,rntv->nrkv", k * after, v)
    kept = jnp.moveaxis(before[..., -1, :], 1, 0)[..., None]

    def step(state: Array, of_chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, added = of_chunk
        return kept * state + added, state

    last, states = jax.lax.scan(step, state.reshape(rows, *state.shape[2:]), (kept, added))
    out += jnp.einsum("rntk,nrkv->rntv", q * before, states)
    return out.reshape(*outer, count * chunk, v.shape[-1])[:, :, :time], last.reshape(state.shape)


def _halvings(chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How every pair of tokens of a chunk is met once, where a block of 2, 4, ... tokens falls into halves.

    A token of the second half sees one of the first half through the decay from the middle to itself, the gates of its
    half up to its own, times the decay of the other to the middle.

    Returns:
      Which gates to sum, (2 + halvings, chunk, chunk): from the start of the chunk, to its end, then between the token
      and the middle for each halving. Whether the token is in the second half, (1, 1, halvings, chunk, 1). Which
      pairs meet, (1, 1, halvings, chunk, chunk).
    """
    token = np.arange(chunk)
    later, same = token[:, np.newaxis] > token, token[:, np.newaxis] == token
    sizes = [1 << i for i in range(chunk.bit_length() - 1)]
    second = np.array([token // size % 2 == 1 for size in sizes], bool).reshape(-1, chunk, 1)
    block = np.array([token // (2 * size) for size in sizes], int).reshape(-1, chunk, 1)
    inside, half = block == block.swapaxes(1, 2), second == second.swapaxes(1, 2)
    between = inside & half & np.where(second, later | same, later.T)
    sums = np.concatenate([[later | same, later.T], between])
    return sums, second[np.newaxis, np.newaxis], (inside & second & ~half)[np.newaxis, np.newaxis]


FORMS: dict[str, Form] = {"chunked": _chunked, "recurrent": _recurrent, "quadratic": _quadratic}
"""The ways to compute it, which agree."""
