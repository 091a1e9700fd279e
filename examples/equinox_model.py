"""Which pixels an Equinox network needs, by a routed update of its arrays: ``python examples/equinox_model.py``.

The update knows no framework: ``eqx.partition`` gives a tree of arrays, labels say which leaves are gates, and the loop
is one's own. A hard-concrete gate on the 64 pixels of handwritten digits is trained under a penalty on open pixels;
the loss of the gate pass has the penalty, that of the main pass does not. First a step is done by hand with
``jax.grad`` and optax, gates first, then the weights at the new gates, which must give the same numbers. Then the
pixels that stay open are printed, and the test accuracy of nearest neighbours that see these pixels, or as many others.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.feature_selection import SelectKBest
from sklearn.neighbors import KNeighborsClassifier

import fsg_jax as fsg
from fsg_jax.data import load_digits


class Net(eqx.Module):
    """A gate on the pixels, then two layers; the logits of the gate are an array like any other."""

    gate: jax.Array
    layers: eqx.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        self.gate = jnp.full(64, 2.2)
        self.layers = eqx.nn.MLP(64, 10, 64, 1, key=key)

    def __call__(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Logits (batch, 10) of pixels (batch, 64); all rows have one draw of the gates."""
        return jax.vmap(self.layers)(x * fsg.squash(self.gate, "hard_concrete", key=key, train=True)[None])


def main(epochs: int = 15, price: float = 0.06) -> None:
    """Selects pixels; `price` is the penalty of an open one, in nats."""
    digits = (load_digits("train"), load_digits("test"))
    (x, label), (test_x, test_label) = ((np.float32(d.images.reshape(len(d), 64)) / 255, d.labels) for d in digits)
    arrays, rest = eqx.partition(Net(jax.random.key(0)), eqx.is_inexact_array)

    def loss(arrays, model_state, batch, key):
        values = fsg.losses.cross_entropy(eqx.combine(arrays, rest)(batch["x"], key), batch)
        return jnp.mean(values), (model_state, {"loss": jnp.mean(values)})

    def gate_loss(arrays, *others):
        value, aux = loss(arrays, *others)
        return value + price * fsg.penalties.expected_l0(arrays.gate), aux

    weights, gates = optax.adam(3e-3), optax.adam(5e-2)
    tx = fsg.routed(labels={"gates": "gate", "params": ...}, params=weights, gates=gates)
    update = jax.jit(fsg.routing.routed_update(loss, tx, "sequential", gate_loss_fn=gate_loss))

    @jax.jit
    def by_hand(arrays, batch, key):
        slope = jax.grad(gate_loss, has_aux=True)(arrays, {}, batch, key)[0].gate
        moved = arrays.gate + gates.update(slope, gates.init(arrays.gate))[0]
        arrays = eqx.tree_at(lambda net: net.gate, arrays, moved)
        slopes = jax.grad(loss, has_aux=True)(arrays, {}, batch, key)[0].layers
        updates, _ = weights.update(slopes, weights.init(arrays.layers))
        return eqx.tree_at(lambda net: net.layers, arrays, eqx.apply_updates(arrays.layers, updates))

    batch, opt_state, key = {"x": x[:128], "label": label[:128]}, tx.init(arrays), jax.random.key(1)
    pairs = zip(
        *map(jax.tree.leaves, (update(arrays, opt_state, {}, batch, key)[0], by_hand(arrays, batch, key))), strict=True
    )
    print(f"a step, from two by hand: {max(np.abs(np.subtract(a, b)).max() for a, b in pairs):.1e}")

    def accuracy(columns):
        neighbours = KNeighborsClassifier(3).fit(x[:, columns], label)
        return neighbours.score(test_x[:, columns], test_label)

    draw = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in draw.permutation(len(label))[: 128 * 11].reshape(11, 128):
            key, now = jax.random.split(key)
            arrays, opt_state, *_ = update(arrays, opt_state, {}, {"x": x[rows], "label": label[rows]}, now)
    kept = np.asarray(fsg.squash(arrays.gate, "hard_concrete") >= 0.5)
    print("\n".join(" ".join("#" if pixel else "." for pixel in line) for line in kept.reshape(8, 8)))

    count, draw = int(kept.sum()), np.random.default_rng(1)
    by_test = SelectKBest(k=count).fit(x[:, x.std(0) > 0], label).get_support(indices=True)
    by_chance = [accuracy(draw.permutation(64)[:count]) for _ in range(10)]
    print(f"all 64 pixels: test accuracy {accuracy(np.arange(64)):.1%}")
    print(f"the {count} of the gates: {accuracy(np.flatnonzero(kept)):.1%}")
    print(f"{count} by F-test: {accuracy(np.flatnonzero(x.std(0) > 0)[by_test]):.1%}")
    print(f"{count} at random: {np.mean(by_chance):.1%}, mean of 10 draws")


if __name__ == "__main__":
    main()
