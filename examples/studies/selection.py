"""Selects 5 of 50 features of a table with every kind of gate: ``python examples/studies/selection.py --seeds 5``.

The target is a nonlinear function of five columns, drawn anew for each seed. A network with a gate on its input learns
it while a penalty closes gates. Prints, for each kind, in how many seeds exactly the five are selected. The settings
were chosen on seeds 100 and 101.
"""

import argparse
from functools import cache

import flax.linen as nn
import jax
import numpy as np
import optax

import fsg_jax as fsg

ROWS, FEATURES, INFORMATIVE, BATCH, STEPS = 1000, 50, 5, 100, 2000

# penalty, its weight, learning rate of the gates, threshold of a gate value
SETTINGS = {
    "sigmoid": ("l1", 2e-3, 5e-2, 0.5),
    "hard_sigmoid": ("l1", 4e-3, 2e-2, 0.5),
    "relu": ("l1", 2e-3, 2e-2, 0.5),
    "straight_through": ("l0", 4e-3, 1e-2, 0.5),
    "hard_concrete": ("l0", 5e-2, 2e-2, 0.5),
}


class Net(nn.Module):
    """A gate on the features, then two hidden layers."""

    kind: str

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Predictions (batch, 1) of features (batch, features)."""
        x = fsg.Gate(kind=self.kind, name="features")(x, train=train)
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(1)(nn.relu(nn.Dense(64)(x)))


def make_table(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, targets of unit variance with a tenth of noise, and the informative columns."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(ROWS, FEATURES)).astype(np.float32)
    columns = draw.permutation(FEATURES)[:INFORMATIVE]
    a, b, c, d, e = x[:, columns].T
    y = a + b * c + np.sin(2 * d) + np.abs(e)
    y = (y - y.mean()) / y.std() + 0.1 * draw.normal(size=ROWS)
    return x, y.astype(np.float32), np.sort(columns)


@cache
def make_run(kind: str):
    """``run(state, x, y, order) -> state``: a step for each row of `order`, compiled once for all seeds."""
    name, weight, *_ = SETTINGS[kind]
    step = fsg.make_train_step(fsg.losses.squared_error, inputs="x", penalty=fsg.gate_penalty(name, weight), jit=False)

    @jax.jit
    def run(state, x, y, order):
        return jax.lax.scan(lambda s, rows: (step(s, {"x": x[rows], "target": y[rows]})[0], None), state, order)[0]

    return run


def select(kind: str, seed: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """The selected columns, and the informative ones."""
    *_, rate, threshold = SETTINGS[kind]
    x, y, columns = make_table(seed)
    weights = optax.adamw(2e-3, weight_decay=1.0, mask=fsg.is_weight)
    state = fsg.init_state(Net(kind), fsg.routed(params=weights, gates=optax.adam(rate)), jax.random.key(seed), x[:1])
    draw = np.random.default_rng(seed + 1000)
    epochs = [draw.permutation(ROWS).reshape(-1, BATCH) for _ in range(-(-steps * BATCH // ROWS))]
    state = make_run(kind)(state, x, y, np.concatenate(epochs)[:steps])
    return np.flatnonzero(fsg.selected(state, threshold)["features"]), columns


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    print("| kind | penalty | exact | found | selected |\n| --- | --- | ---: | ---: | ---: |")
    for kind in args.kinds:
        results = [select(kind, seed) for seed in range(args.seeds)]
        exact = sum(np.array_equal(chosen, columns) for chosen, columns in results)
        found = np.mean([len(np.intersect1d(chosen, columns)) for chosen, columns in results])
        chosen = np.mean([len(chosen) for chosen, _ in results])
        name, weight, *_ = SETTINGS[kind]
        print(f"| {kind} | {name} {weight:g} | {exact} of {args.seeds} | {found:g} | {chosen:g} |", flush=True)


if __name__ == "__main__":
    main()
